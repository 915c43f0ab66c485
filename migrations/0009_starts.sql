-- Which start of its agent a node last reported from, so that two machines that run on copies of one state directory are noticed.
ALTER TABLE node_reports
    -- How often an agent was started on the state directory; null for an agent that does not say.
    ADD COLUMN start_number bigint,
    -- What that start drew.
    ADD COLUMN start_drawn  bigint,
    ADD CHECK ((start_number IS NULL) = (start_drawn IS NULL));
