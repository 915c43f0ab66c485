-- What was answered to changes that came with an Idempotency-Key, for a day: whoever sends the same again hears the same again. An answer may
-- hold a secret that is shown once; it is sealed with a key that nobody but its caller can derive.

CREATE TABLE answers (
    -- Derived from the caller's api token and his Idempotency-Key, neither of which it tells.
    id      bytea       PRIMARY KEY CHECK (octet_length(id) = 32),
    -- SHA-256 of the request.
    request bytea       NOT NULL CHECK (octet_length(request) = 32),
    -- Null only until the transaction ends that carries the request out.
    sealed  bytea,
    made_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX answers_by_age ON answers (made_at);
