"""Metrics, logs and samples of a job as streams that replay, follow and end."""
