"""Checkpoints: registered as runs write them, verified, kept or removed."""
