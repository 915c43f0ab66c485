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

-- The audit log becomes a chain. Nothing that was released has written an event.
DROP TABLE events;
CREATE TABLE events (
    -- Without gaps.
    number     bigint      PRIMARY KEY,
    at         timestamptz NOT NULL,
    actor      text        NOT NULL,
    action     text        NOT NULL,
    object     text        NOT NULL,
    -- Null for what is not configuration, a token for example.
    revision   bigint,
    request_id text,
    -- SHA-256 of the object as the event found it and left it; null for none.
    before     bytea       CHECK (octet_length(before) = 32),
    after      bytea       CHECK (octet_length(after) = 32),
    -- Over all of this and the hash of the event before.
    hash       bytea       NOT NULL CHECK (octet_length(hash) = 32)
);
CREATE INDEX events_of_object ON events (object, number);

-- The end of the chain; who holds the row's lock writes the next event.
ALTER TABLE mesh
    ADD COLUMN event_number bigint NOT NULL DEFAULT 0,
    ADD COLUMN event_hash   bytea  NOT NULL DEFAULT '\x0000000000000000000000000000000000000000000000000000000000000000'
        CHECK (octet_length(event_hash) = 32);

CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the audit log is only ever added to';
END $$;
CREATE TRIGGER events_are_only_added BEFORE UPDATE OR DELETE OR TRUNCATE ON events FOR EACH STATEMENT EXECUTE FUNCTION refuse();
