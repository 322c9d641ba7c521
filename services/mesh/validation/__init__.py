"""Parameters by their schema; all violations of a request at once."""
