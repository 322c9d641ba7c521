"""Datasets: upload, check, version, serve. Files of a person become canonical rows in content-addressed chunks."""
