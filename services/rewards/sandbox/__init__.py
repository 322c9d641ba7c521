"""A user's own reward code in a process that sees the interpreter and nothing else."""
