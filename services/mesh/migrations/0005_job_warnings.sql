-- What the owner of a job should know. One row for each (attempt, reason, key); repetitions are counted.
CREATE TABLE job_warnings (
    job_uid uuid NOT NULL REFERENCES jobs ON DELETE CASCADE,
    attempt integer NOT NULL,
    reason text NOT NULL,
    -- Tells apart what shares a reason: a checkpoint's step, a reward's name; often empty.
    key text NOT NULL,
    -- The order in which they were found.
    ordinal bigint GENERATED ALWAYS AS IDENTITY,
    severity text NOT NULL,
    message text NOT NULL,
    remedy text NOT NULL,
    first_step bigint NOT NULL,
    last_step bigint NOT NULL,
    count bigint NOT NULL,
    first_time timestamptz NOT NULL,
    last_time timestamptz NOT NULL,
    PRIMARY KEY (job_uid, attempt, reason, key)
);
