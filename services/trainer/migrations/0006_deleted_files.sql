-- What runs of deleted checkpoints left on the disk of a worker, until that worker has removed it.
CREATE TABLE deleted_files (
    job_uid uuid NOT NULL,
    path text NOT NULL
);
