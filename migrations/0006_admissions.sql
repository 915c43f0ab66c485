-- An operator's word that a node may be in the mesh, as he wrote it, byte for byte. His key is never here.
ALTER TABLE nodes
    ADD COLUMN admission           text  CHECK (octet_length(admission) <= 16384),
    ADD COLUMN admission_signature bytea CHECK (octet_length(admission_signature) = 64),
    ADD CHECK ((admission IS NULL) = (admission_signature IS NULL));
