ALTER TABLE uploads
    -- Names of keys, rows that may be wrong, rows held out; see dataset/uploads/options.py.
    ADD COLUMN options jsonb NOT NULL DEFAULT '{}',
    -- Full name of the version that holds the rows held out; empty without a split.
    ADD COLUMN split_dataset_version text NOT NULL DEFAULT '';

-- Rows that an upload left out, as JSON (dataset/uploads/skipped_rows.py): it may hold what jsonb does not.
CREATE TABLE skipped_rows (
    upload_uid uuid NOT NULL REFERENCES uploads ON DELETE CASCADE,
    index integer NOT NULL,
    content bytea NOT NULL,
    PRIMARY KEY (upload_uid, index)
);
