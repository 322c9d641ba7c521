"""Uploads: staged, checked in a sandbox, made a version of."""
