"""Trains models with verl on Ray: models, training jobs, checkpoints, metrics and logs."""
