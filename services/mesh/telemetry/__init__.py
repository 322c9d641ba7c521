"""Logs, traces, metrics, and where they are exported to."""
