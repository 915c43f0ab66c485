-- Whether anybody has met a node at the endpoint that it names itself, and who tries it. Nodes from before are believed.
ALTER TABLE nodes
    ADD COLUMN endpoint_verified boolean NOT NULL DEFAULT true,
    ADD COLUMN endpoint_tried_by uuid,
    ADD COLUMN endpoint_tried_at timestamptz,
    ADD COLUMN endpoint_tries    integer NOT NULL DEFAULT 0 CHECK (endpoint_tries >= 0),
    ADD CHECK ((endpoint_tried_by IS NULL) = (endpoint_tried_at IS NULL));
