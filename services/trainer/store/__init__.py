"""SQL of the trainer, by noun: rows in, dataclasses out. Every function runs in its caller's transaction."""
