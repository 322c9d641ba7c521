ALTER TABLE checkpoints
    -- Why it is CORRUPT or PRUNED.
    ADD COLUMN state_reason text NOT NULL DEFAULT '',
    ADD COLUMN provenance jsonb NOT NULL DEFAULT '{}',
    -- KEPT, PRUNED or CORRUPT; the two last have no path.
    ADD COLUMN training_state text NOT NULL DEFAULT 'KEPT',
    -- The run's own copy of the weights, until they are in the artifact store and it is deleted.
    ADD COLUMN weights_path text NOT NULL DEFAULT '';
UPDATE checkpoints SET training_state = 'PRUNED' WHERE training_state_path = '';

-- Manifests that lost their model or checkpoint. Of their blobs those go that nothing else names.
CREATE TABLE doomed_manifests (
    sha256 text PRIMARY KEY,
    create_time timestamptz NOT NULL DEFAULT now()
);
