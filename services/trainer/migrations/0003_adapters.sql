ALTER TABLE models
    -- Names of what it was made from: a checkpoint, and what that lay over if it was an adapter.
    ADD COLUMN parents text[] NOT NULL DEFAULT '{}';
