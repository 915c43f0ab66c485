-- Identities that nodes had before those that they have now: none of them ever enrols again.

CREATE TABLE former_identities (
    identity_key bytea PRIMARY KEY CHECK (octet_length(identity_key) = 32),
    node         uuid  NOT NULL REFERENCES nodes
);
