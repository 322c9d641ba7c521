"""Datasets and their versions: create, show, list, download, delete."""
