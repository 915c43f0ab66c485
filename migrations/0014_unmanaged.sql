-- Gateways without an agent, which take a wg-quick file.
ALTER TABLE nodes
    ALTER COLUMN agent_version DROP NOT NULL,
    ALTER COLUMN join_token DROP NOT NULL,
    -- When the node's last file was made; null for a node with an agent.
    ADD COLUMN file_made_at timestamptz,
    -- SHA-256 of what that file says, but for its secrets, which are nowhere here.
    ADD COLUMN file_digest  bytea CHECK (octet_length(file_digest) = 32),
    ADD CONSTRAINT agent_or_file CHECK (
        (num_nulls(agent_version, join_token), num_nulls(file_made_at, file_digest)) IN ((0, 2), (2, 0)));

-- What waits for a node is a letter of another, or the preshared key of its tunnel with an unmanaged one, sealed for it.
ALTER TABLE psk_messages
    ALTER COLUMN message DROP NOT NULL,
    ALTER COLUMN signature DROP NOT NULL,
    ADD COLUMN sealed  bytea  CHECK (octet_length(sealed) = 80),
    -- When the file was made that has the same key, in milliseconds since 1970.
    ADD COLUMN made_ms bigint CHECK (made_ms > 0),
    ADD CONSTRAINT letter_or_given CHECK ((num_nulls(message, signature), num_nulls(sealed, made_ms)) IN ((0, 2), (2, 0)));
