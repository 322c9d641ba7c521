-- CORRUPT because the check could not confirm it: its files are in the store as they were found, until they are let go.
ALTER TABLE checkpoints ADD COLUMN files_kept boolean NOT NULL DEFAULT false;
