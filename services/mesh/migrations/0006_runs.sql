-- What the runs of jobs report, and how far it was read. Homes of earlier code have these tables from the trainer.

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
