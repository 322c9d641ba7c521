-- What versions need of the artifact store is told where all services tell it.
INSERT INTO artifacts.contents (sha256, known) SELECT DISTINCT sha256, true FROM versions ON CONFLICT DO NOTHING;
INSERT INTO artifacts.content_blobs (content, blob)
    SELECT DISTINCT v.sha256, c.sha256 FROM versions AS v JOIN chunks AS c USING (dataset_uid, number)
    ON CONFLICT DO NOTHING;
INSERT INTO artifacts.blob_references (holder, sha256)
    SELECT name, sha256 FROM versions UNION SELECT name, source_sha256 FROM versions
    ON CONFLICT DO NOTHING;
