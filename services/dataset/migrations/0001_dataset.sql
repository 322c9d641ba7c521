CREATE TABLE datasets (
    uid uuid PRIMARY KEY,
    name text NOT NULL UNIQUE,
    parent text NOT NULL,
    display_name text NOT NULL,
    format text NOT NULL,
    labels jsonb NOT NULL,
    -- The number of the newest version; versions are never taken away one by one.
    version_count bigint NOT NULL DEFAULT 0,
    -- Rises with every change; the etag is made of it.
    revision bigint NOT NULL DEFAULT 1,
    create_time timestamptz NOT NULL DEFAULT now(),
    update_time timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX datasets_list ON datasets (parent, uid DESC);

CREATE TABLE versions (
    dataset_uid uuid NOT NULL REFERENCES datasets ON DELETE CASCADE,
    number bigint NOT NULL,
    name text NOT NULL UNIQUE,
    sha256 text NOT NULL,
    format text NOT NULL,
    row_count bigint NOT NULL,
    size_bytes bigint NOT NULL,
    statistics jsonb NOT NULL,
    source_sha256 text NOT NULL,
    source_file_name text NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (dataset_uid, number)
);

-- Canonical rows as JSON lines; the bytes lie in the artifact store under their hash.
CREATE TABLE chunks (
    dataset_uid uuid NOT NULL,
    number bigint NOT NULL,
    index integer NOT NULL,
    sha256 text NOT NULL,
    first_row_index bigint NOT NULL,
    row_count bigint NOT NULL,
    offset_bytes bigint NOT NULL,
    size_bytes bigint NOT NULL,
    PRIMARY KEY (dataset_uid, number, index),
    UNIQUE (dataset_uid, number, first_row_index),
    UNIQUE (dataset_uid, number, offset_bytes),
    FOREIGN KEY (dataset_uid, number) REFERENCES versions ON DELETE CASCADE
);

-- What has arrived is the staging file's size and the state is that of the validation job with the upload's name, so
-- that neither is written twice.
CREATE TABLE uploads (
    uid uuid PRIMARY KEY,
    name text NOT NULL UNIQUE,
    dataset_uid uuid NOT NULL REFERENCES datasets ON DELETE CASCADE,
    file_name text NOT NULL,
    size_bytes bigint NOT NULL,
    sha256 text NOT NULL,
    committed boolean NOT NULL DEFAULT false,
    -- Full name of the version that holds its rows; empty until it has succeeded.
    dataset_version text NOT NULL DEFAULT '',
    report jsonb,
    create_time timestamptz NOT NULL DEFAULT now(),
    expire_time timestamptz NOT NULL
);
CREATE INDEX uploads_list ON uploads (dataset_uid, uid DESC);
CREATE UNIQUE INDEX uploads_receiving ON uploads (dataset_uid, sha256, size_bytes, file_name) WHERE NOT committed;
CREATE INDEX uploads_expiry ON uploads (expire_time) WHERE NOT committed;

-- Which training jobs read which dataset, as the trainer's events tell. A job that has ended stays here, so that an
-- older event that arrives late cannot bring it back to life.
CREATE TABLE uses (
    dataset text NOT NULL,
    training_job text NOT NULL,
    sequence bigint NOT NULL,
    ended boolean NOT NULL,
    PRIMARY KEY (dataset, training_job)
);
