"""Files in the folder of a run, one attempt of a job."""

from __future__ import annotations

import contextlib
from pathlib import Path

# What is to be done, made by the worker; each service has a document of its own.
PLAN_FILE = "plan.json"
SPOOL_FILE = "spool.jsonl"
# What the worker wants of the run: to go on or to stop.
CONTROL_FILE = "control.json"
# Who runs, written by the run.
RUNNER_FILE = "runner.json"
OUTPUT_FILE = "output.log"
# Held by the process as long as it lives: a lock can't be mistaken as a process id can.
LOCK_FILE = "alive.lock"
# Of the run's other processes, and what each was doing when the run was given up.
PROCESSES_FILE = "processes.json"
STACKS_FILE = "stacks.txt"
STOP = b'{"action": "stop"}'


def stop_requested(folder: Path) -> bool:
    """Whether the run in `folder` is told to stop."""
    with contextlib.suppress(OSError):
        return (folder / CONTROL_FILE).read_bytes() == STOP
    return False


def write_atomically(path: Path, data: bytes) -> None:
    """A reader sees the old bytes or the new ones."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(data)
    partial.replace(path)
