-- How the health of links is judged.
ALTER TABLE mesh
    ADD COLUMN probes        boolean NOT NULL DEFAULT true,
    ADD COLUMN lossy_percent integer NOT NULL DEFAULT 10  CHECK (lossy_percent BETWEEN 1 AND 100),
    ADD COLUMN slow_ms       integer NOT NULL DEFAULT 500 CHECK (slow_ms BETWEEN 1 AND 60000);

-- An end of a link says more than whether it is up; null still means that it has not reported.
ALTER TABLE links
    ALTER COLUMN a_up TYPE text USING CASE WHEN a_up THEN 'up' WHEN NOT a_up THEN 'down' END,
    ALTER COLUMN b_up TYPE text USING CASE WHEN b_up THEN 'up' WHEN NOT b_up THEN 'down' END;
ALTER TABLE links RENAME COLUMN a_up TO a_state;
ALTER TABLE links RENAME COLUMN b_up TO b_state;
ALTER TABLE links
    ADD CHECK (a_state IN ('up', 'lossy', 'slow', 'one_way', 'down')),
    ADD CHECK (b_state IN ('up', 'lossy', 'slow', 'one_way', 'down')),
    -- Whether it knows that from probes.
    ADD COLUMN a_probed   boolean     NOT NULL DEFAULT false,
    ADD COLUMN b_probed   boolean     NOT NULL DEFAULT false,
    -- When an end was written last.
    ADD COLUMN written_at timestamptz NOT NULL DEFAULT now(),
    -- What its history says last; null means nothing.
    ADD COLUMN state      text        CHECK (state IN ('up', 'degraded', 'down', 'never')),
    ADD COLUMN fault      text        CHECK (fault IN ('asymmetric', 'lossy', 'slow'));
CREATE INDEX links_written ON links (written_at);

-- When links changed their state, in the last 30 days.
CREATE TABLE link_history (
    a     uuid        NOT NULL,
    b     uuid        NOT NULL,
    at    timestamptz NOT NULL,
    state text        NOT NULL CHECK (state IN ('up', 'degraded', 'down', 'never')),
    fault text        CHECK (fault IN ('asymmetric', 'lossy', 'slow')),
    PRIMARY KEY (a, b, at),
    FOREIGN KEY (a, b) REFERENCES links ON DELETE CASCADE
);
CREATE INDEX link_history_at ON link_history (at);
