-- The mesh's own tables; they are migrated into each service's schema before the service's.

CREATE TABLE jobs (
    uid uuid PRIMARY KEY,
    kind text NOT NULL,
    name text NOT NULL UNIQUE,
    parent text NOT NULL,
    state text NOT NULL,
    priority integer NOT NULL DEFAULT 0,
    -- Rises with every change of state.
    sequence bigint NOT NULL DEFAULT 1,
    -- What was asked for; never changes.
    spec jsonb NOT NULL,
    -- What moves while it runs; does not raise the sequence.
    progress jsonb NOT NULL DEFAULT '{}',
    -- {"code", "reason", "message", "metadata"} of a failed job.
    error jsonb,
    lease_owner text,
    lease_token uuid,
    lease_expires_at timestamptz,
    -- A retry waits until then.
    not_before timestamptz NOT NULL DEFAULT now(),
    create_time timestamptz NOT NULL DEFAULT now(),
    start_time timestamptz,
    end_time timestamptz
);
CREATE INDEX jobs_open ON jobs (kind, priority DESC, create_time) WHERE end_time IS NULL;
CREATE INDEX jobs_list ON jobs (kind, parent, uid DESC);

CREATE TABLE job_attempts (
    job_uid uuid NOT NULL REFERENCES jobs ON DELETE CASCADE,
    number integer NOT NULL,
    lease_owner text NOT NULL,
    resumed_from_step bigint NOT NULL DEFAULT 0,
    start_time timestamptz NOT NULL DEFAULT now(),
    end_time timestamptz,
    end_reason text NOT NULL DEFAULT '',
    PRIMARY KEY (job_uid, number)
);

-- Answers to requests that carried a request_id.
CREATE TABLE requests (
    parent text NOT NULL,
    request_id text NOT NULL,
    request_sha256 text NOT NULL,
    resource text NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (parent, request_id)
);

-- Every change, written in the transaction that made it: feeds Watch, NATS and audit.
CREATE TABLE events (
    id uuid PRIMARY KEY,
    ordinal bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    -- Full proto name of the message in `payload`.
    type text NOT NULL,
    resource text NOT NULL,
    sequence bigint NOT NULL,
    payload jsonb NOT NULL,
    principal text NOT NULL,
    traceparent text NOT NULL DEFAULT '',
    create_time timestamptz NOT NULL DEFAULT now(),
    publish_time timestamptz,
    UNIQUE (type, resource, sequence)
);
CREATE INDEX events_unpublished ON events (ordinal) WHERE publish_time IS NULL;

-- What a consumer has done, so that a second delivery does nothing.
CREATE TABLE consumed_events (
    consumer text NOT NULL,
    event_id text NOT NULL,
    consume_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (consumer, event_id)
);
