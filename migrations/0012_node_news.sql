-- News of nodes, beside those of links: a is the node and after what became of it; b and before are of links alone, name of nodes.
ALTER TABLE webhook_news
    ALTER COLUMN b DROP NOT NULL,
    ALTER COLUMN before DROP NOT NULL,
    ADD COLUMN name text,
    ADD CHECK (num_nonnulls(b, before) = CASE WHEN name IS NULL THEN 2 ELSE 0 END);

-- Whether it was told last that the node is silent.
ALTER TABLE node_reports ADD COLUMN silent boolean NOT NULL DEFAULT false;
