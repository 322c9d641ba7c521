"""Child processes: confinement, the fork server, what /proc tells."""
