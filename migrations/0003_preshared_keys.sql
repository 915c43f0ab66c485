-- Letters with which two nodes agree on the preshared key of their tunnel, while they are on their way. They are sealed for their recipient
-- and signed by their sender; no key is ever here.

CREATE TABLE psk_messages (
    sender    uuid        NOT NULL REFERENCES nodes,
    recipient uuid        NOT NULL REFERENCES nodes,
    -- A letter that takes the place of another has a number of its own, so that nobody takes away what he has not read.
    id        bigint      NOT NULL GENERATED ALWAYS AS IDENTITY,
    -- As the sender wrote it, byte for byte.
    message   text        NOT NULL CHECK (octet_length(message) <= 2048),
    signature bytea       NOT NULL CHECK (octet_length(signature) = 64),
    posted_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (sender, recipient)
);
CREATE INDEX psk_messages_of_recipient ON psk_messages (recipient, id);

-- Whether packets may pass without a preshared key. A mesh that was made before there were any goes on as it is.
ALTER TABLE mesh ADD COLUMN psk text NOT NULL DEFAULT 'prefer' CHECK (psk IN ('require', 'prefer'));
