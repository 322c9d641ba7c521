"""Runs of jobs: processes that outlive their worker, followed by the spool that they write, watched, found again."""
