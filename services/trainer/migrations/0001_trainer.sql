CREATE TABLE models (
    uid uuid PRIMARY KEY,
    name text NOT NULL UNIQUE,
    parent text NOT NULL,
    display_name text NOT NULL,
    -- {"hub": …} | {"path": …} | {"init": {…}}
    source jsonb NOT NULL,
    labels jsonb NOT NULL,
    state text NOT NULL,
    architecture text NOT NULL DEFAULT '',
    parameter_count bigint NOT NULL DEFAULT 0,
    context_length integer NOT NULL DEFAULT 0,
    vocabulary_size integer NOT NULL DEFAULT 0,
    manifest_sha256 text NOT NULL DEFAULT '',
    size_bytes bigint NOT NULL DEFAULT 0,
    error jsonb,
    create_time timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX models_list ON models (parent, uid DESC);

CREATE TABLE checkpoints (
    job_uid uuid NOT NULL REFERENCES jobs ON DELETE CASCADE,
    step bigint NOT NULL,
    name text NOT NULL UNIQUE,
    attempt integer NOT NULL,
    kind text NOT NULL,
    state text NOT NULL,
    base_model text NOT NULL,
    manifest_sha256 text NOT NULL DEFAULT '',
    size_bytes bigint NOT NULL DEFAULT 0,
    metrics jsonb NOT NULL DEFAULT '{}',
    parents text[] NOT NULL,
    -- Private: where verl's own state lies beside the run, and the hash of its manifest. Empty once it is pruned.
    training_state_path text NOT NULL DEFAULT '',
    training_state_sha256 text NOT NULL DEFAULT '',
    create_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (job_uid, step)
);

-- The tables of runs are the mesh's now (its 0006_runs.sql), and are made there where this file is new.

-- How far a job's run has been read. Offsets and what was read move in one transaction, so nothing counts twice.
CREATE TABLE IF NOT EXISTS spools (
    job_uid uuid PRIMARY KEY REFERENCES jobs ON DELETE CASCADE,
    attempt integer NOT NULL,
    record_offset_bytes bigint NOT NULL DEFAULT 0,
    output_offset_bytes bigint NOT NULL DEFAULT 0,
    metric_ordinal bigint NOT NULL DEFAULT 0,
    log_ordinal bigint NOT NULL DEFAULT 0,
    sample_ordinal bigint NOT NULL DEFAULT 0
);

CREATE TABLE IF NOT EXISTS metric_points (
    job_uid uuid NOT NULL REFERENCES jobs ON DELETE CASCADE,
    ordinal bigint NOT NULL,
    attempt integer NOT NULL,
    step bigint NOT NULL,
    metric text NOT NULL,
    value double precision NOT NULL,
    observe_time timestamptz NOT NULL,
    PRIMARY KEY (job_uid, ordinal)
);

CREATE TABLE IF NOT EXISTS log_lines (
    job_uid uuid NOT NULL REFERENCES jobs ON DELETE CASCADE,
    ordinal bigint NOT NULL,
    attempt integer NOT NULL,
    text text NOT NULL,
    observe_time timestamptz NOT NULL,
    PRIMARY KEY (job_uid, ordinal)
);

CREATE TABLE IF NOT EXISTS samples (
    job_uid uuid NOT NULL REFERENCES jobs ON DELETE CASCADE,
    ordinal bigint NOT NULL,
    attempt integer NOT NULL,
    split text NOT NULL,
    step bigint NOT NULL,
    row_index bigint NOT NULL,
    prompt text NOT NULL,
    completion text NOT NULL,
    answer text NOT NULL,
    score double precision NOT NULL,
    parts jsonb NOT NULL,
    observe_time timestamptz NOT NULL,
    PRIMARY KEY (job_uid, ordinal)
);
