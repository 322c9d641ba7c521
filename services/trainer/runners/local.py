"""Runs on this host: a process in a session of its own, which lives on when the worker dies."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from services.trainer import plan as plans
from services.trainer.plan import LaunchPlan

OUTPUT_FILE = "output.log"
# Held by the process as long as it lives: a lock can't be mistaken as a process id can.
LOCK_FILE = "alive.lock"
STOP = b'{"action": "stop"}'


class LocalRun:
    """See `runners.Run`. `environment` is the whole environment of the process."""

    def __init__(self, folder: Path, python: str, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self._python = python
        self._environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def temporary(self) -> Path:
        """Where its processes keep locks and sockets, whose paths have to be short."""
        digest = hashlib.sha256(os.fsencode(self.folder.resolve())).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"rlhf-run-{digest}"

    async def start(self, plan: LaunchPlan) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / plans.CONTROL_FILE, b'{"action": "run"}')
        write_atomically(self.folder / plans.PLAN_FILE, plans.encode(plan))
        self.clear()
        # Fails where somebody else has made it: the name can be guessed.
        self.temporary.mkdir(mode=0o700, parents=True)
        lock = os.open(self.folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with (self.folder / OUTPUT_FILE).open("ab") as output:
                self._process = subprocess.Popen(  # noqa: ASYNC220, S603 - returns at once; a fixed command
                    [self._python, "-m", "services.trainer.verl.runner", str(self.folder)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env={**self._environment, "TMPDIR": str(self.temporary)},
                    cwd=self.folder,
                    start_new_session=True,
                    pass_fds=[lock],
                )
        finally:
            os.close(lock)

    def is_alive(self) -> bool:
        if self._process is not None:
            self._process.poll()  # reaps it; the lock tells
        try:
            lock = os.open(self.folder / LOCK_FILE, os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(lock)
        return False

    def request_stop(self) -> None:
        try:
            write_atomically(self.folder / plans.CONTROL_FILE, STOP)
        except OSError:
            # No room for the question, and so none for what it would save.
            self.kill()

    def was_told_to_stop(self) -> bool:
        return stop_requested(self.folder)

    def kill(self) -> None:
        pid = self._process.pid if self._process is not None else self._recorded_pid()
        if pid is not None and self.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)

    def clear(self) -> None:
        shutil.rmtree(self.temporary, ignore_errors=True)

    def _recorded_pid(self) -> int | None:
        """The process id that the run wrote down; sure to be its own while the lock is held."""
        try:
            return int(json.loads((self.folder / plans.RUNNER_FILE).read_bytes())["pid"])
        except (OSError, ValueError, KeyError):
            return None


def stop_requested(folder: Path) -> bool:
    """Whether the run in `folder` is told to stop."""
    with contextlib.suppress(OSError):
        return (folder / plans.CONTROL_FILE).read_bytes() == STOP
    return False


def write_atomically(path: Path, data: bytes) -> None:
    """A reader sees the old bytes or the new ones."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(data)
    partial.replace(path)
