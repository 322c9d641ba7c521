-- What runs of deleted checkpoints left on the disk of a worker, until that worker has removed it; and deleted jobs, with
-- an empty path: these stay.
CREATE TABLE deleted_files (
    job_uid uuid NOT NULL,
    path text NOT NULL
);
