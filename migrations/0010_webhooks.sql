-- Who is told of links that change their state. What signs the messages is derived from the mesh's secret and the id.
CREATE TABLE webhooks (
    id           uuid        PRIMARY KEY,
    url          text        NOT NULL CHECK (octet_length(url) <= 2048),
    created_at   timestamptz NOT NULL DEFAULT now(),
    delivered_at timestamptz,
    -- Why the last attempt failed; null when it did not.
    error        text
);

-- Changes that nobody was told of yet: they wait for others that belong to them.
CREATE TABLE webhook_news (
    number bigint      PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    at     timestamptz NOT NULL DEFAULT now(),
    a      uuid        NOT NULL,
    b      uuid        NOT NULL,
    before text        NOT NULL,
    after  text        NOT NULL
);

-- Messages on their way.
CREATE TABLE webhook_deliveries (
    id       uuid        PRIMARY KEY,
    webhook  uuid        NOT NULL REFERENCES webhooks ON DELETE CASCADE,
    body     text        NOT NULL,
    attempts integer     NOT NULL DEFAULT 0,
    -- When to try next; whoever tries moves it on first.
    next_at  timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX webhook_deliveries_next ON webhook_deliveries (next_at);
