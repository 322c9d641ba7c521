"""Jobs: states, leases, queue, warnings, and the worker that carries them out."""
