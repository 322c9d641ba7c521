"""Runs of training jobs: started at a place to run, followed by their spool, watched."""
