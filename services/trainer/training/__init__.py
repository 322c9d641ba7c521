"""Training jobs: checked and created, prepared, carried out, resumed, deleted."""
