-- What models, checkpoints and jobs need of the artifact store is told where all services tell it.

-- What has bytes of its own. Which blobs they are is in the manifests, which the collector reads.
INSERT INTO artifacts.blob_references (holder, sha256)
    SELECT name, manifest_sha256 FROM models WHERE state = 'READY' AND manifest_sha256 <> ''
    UNION SELECT name, manifest_sha256 FROM checkpoints WHERE (state = 'READY' OR files_kept) AND manifest_sha256 <> ''
    ON CONFLICT DO NOTHING;

-- What an adapter lies over, where it is still there.
INSERT INTO artifacts.blob_references (holder, resource, sha256)
    SELECT c.name, layer->>'name', layer->>'manifest_sha256'
    FROM checkpoints AS c JOIN jobs AS j ON j.uid = c.job_uid,
        jsonb_array_elements(coalesce(j.spec->'base_under', '[]') || jsonb_build_array(jsonb_build_object(
            'name', j.spec->>'base_model', 'manifest_sha256', j.spec->>'base_manifest_sha256'))) AS layer
    WHERE c.kind = 'adapter' AND (c.state = 'READY' OR c.files_kept) AND layer->>'manifest_sha256' IN (
        SELECT sha256 FROM artifacts.blob_references WHERE resource = '')
    ON CONFLICT DO NOTHING;

-- What jobs and imports load that have not ended.
INSERT INTO artifacts.blob_references (holder, resource, sha256)
    SELECT name, spec->>'base_model', spec->>'base_manifest_sha256' FROM jobs
        WHERE kind = 'training' AND end_time IS NULL
    UNION SELECT name, reward.key, reward.value FROM jobs, jsonb_each_text(coalesce(spec->'reward_models', '{}')) AS reward
        WHERE kind = 'training' AND end_time IS NULL
    UNION SELECT name, layer->>'name', layer->>'manifest_sha256'
        FROM jobs, jsonb_array_elements(coalesce(spec->'base_under', '[]')) AS layer WHERE end_time IS NULL
    UNION SELECT name, spec->>'dataset_version', coalesce(spec->>'dataset_sha256', '') FROM jobs
        WHERE kind = 'training' AND end_time IS NULL
    UNION SELECT name, spec->>'resume_from', '' FROM jobs
        WHERE kind = 'training' AND end_time IS NULL AND coalesce(spec->>'resume_from', '') <> ''
    UNION SELECT name, spec->>'validation_dataset_version', coalesce(spec->>'validation_dataset_sha256', '') FROM jobs
        WHERE kind = 'training' AND end_time IS NULL AND coalesce(spec->>'validation_dataset_version', '') <> ''
    ON CONFLICT DO NOTHING;

INSERT INTO artifacts.contents (sha256, known)
    SELECT DISTINCT r.sha256, false FROM artifacts.blob_references AS r
        WHERE r.sha256 <> '' AND (EXISTS (SELECT FROM models WHERE name IN (r.holder, r.resource))
            OR r.holder LIKE '%/checkpoints/%' OR r.resource LIKE '%/checkpoints/%'
            OR r.resource LIKE '%/models/%')
    ON CONFLICT DO NOTHING;

-- Whatever of these nothing needs goes with the next sweep.
INSERT INTO artifacts.released (sha256) SELECT sha256 FROM doomed_manifests;
DROP TABLE doomed_manifests;
