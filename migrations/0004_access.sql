-- The certificate authorities that agents are to trust, by the SHA-256 of their certificates. Their keys are never here.
CREATE TABLE authorities (
    pin     bytea       PRIMARY KEY CHECK (octet_length(pin) = 32),
    made_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

ALTER TABLE api_tokens
    -- Null means that it does not expire.
    ADD COLUMN expires_at   timestamptz,
    -- To within a minute.
    ADD COLUMN last_used_at timestamptz;
