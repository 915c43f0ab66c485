-- How nodes take up new WireGuard keys.

ALTER TABLE nodes
    -- The statement that is about to take the place of the present one, as the node wrote it.
    ADD COLUMN announced           text,
    ADD COLUMN announced_signature bytea       CHECK (octet_length(announced_signature) = 64),
    ADD COLUMN announced_key       bytea       CONSTRAINT node_announced_key UNIQUE CHECK (octet_length(announced_key) = 32),
    ADD COLUMN announced_at        timestamptz,
    -- When somebody asked for a new key; null once the node has one.
    ADD COLUMN rotate_since        timestamptz,
    ADD CONSTRAINT announced_whole CHECK (num_nulls(announced, announced_signature, announced_key, announced_at) IN (0, 4));

-- Which peers are ready for the key that a node has announced; rows are of no use once it is taken up or withdrawn.
CREATE TABLE armed_peers (
    node     uuid   NOT NULL REFERENCES nodes,
    -- Number of the announced statement.
    sequence bigint NOT NULL,
    peer     uuid   NOT NULL REFERENCES nodes,
    PRIMARY KEY (node, sequence, peer)
);
CREATE INDEX armed_peers_of_peer ON armed_peers (peer);

-- Days for which a node uses a WireGuard key; 0 means that it keeps it.
ALTER TABLE mesh ADD COLUMN rotate_days integer NOT NULL DEFAULT 0 CHECK (rotate_days BETWEEN 0 AND 3650);
