"""Runs on this host: a process in a session of its own, which lives on when the worker dies."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from services.mesh.processes import procfs
from services.mesh.processes.fork_server import client as fork_client
from services.mesh.processes.fork_server.client import Request
from services.mesh.runs import processes
from services.mesh.runs.files import (
    CONTROL_FILE,
    LOCK_FILE,
    OUTPUT_FILE,
    PLAN_FILE,
    RUNNER_FILE,
    STACKS_FILE,
    STOP,
    stop_requested,
    write_atomically,
)
from services.mesh.runs.runners import Entrypoint, runners

log = logging.getLogger(__name__)

# Of what a run printed, in the error of one that died without a word.
LAST_LINES = 5
_LAST_BYTES = 8192
_LINE_CHARACTERS = 200
# For each process to write its stacks.
_STACK_SECONDS = 0.3


class LocalRun:
    """A process in a session of its own on this host."""

    def __init__(self, folder: Path, entrypoint: Entrypoint) -> None:
        self.folder = folder
        self._entrypoint = entrypoint
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def temporary(self) -> Path:
        """Where its processes keep locks and sockets, whose paths have to be short."""
        digest = hashlib.sha256(os.fsencode(self.folder.resolve())).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"rlhf-run-{digest}"

    async def start(self, plan: bytes) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / CONTROL_FILE, b'{"action": "run"}')
        write_atomically(self.folder / PLAN_FILE, plan)
        self.clear()
        # Fails where somebody else has made it: the name can be guessed.
        self.temporary.mkdir(mode=0o700, parents=True)
        environment = {**self._entrypoint.environment, "TMPDIR": str(self.temporary)}
        server = self._entrypoint.fork_server
        if server is None or not await asyncio.to_thread(self._forked, server, environment):
            self._spawn(environment)

    def _forked(self, server: Path, environment: Mapping[str, str]) -> bool:
        """Have the server fork it. False where it could not, and surely has not."""
        folder = str(self.folder)
        variables = {**environment, fork_client.VARIABLE: str(server)}
        # The server may go while the run goes on, as the worker may.
        request = Request(("-m", self._entrypoint.module, folder), variables, folder, detached=True)
        with self._lock() as lock, self._output() as output, Path(os.devnull).open("rb") as nothing:
            try:
                fork_client.fork(server, request, [nothing.fileno(), output.fileno(), output.fileno(), lock])
            except OSError as error:
                log.warning("a run is started without the fork server: %s", error)
            else:
                return True
        # An answer may be lost on its way: who was forked holds the lock.
        return self.is_alive()

    def _spawn(self, environment: Mapping[str, str]) -> None:
        with self._lock() as lock, self._output() as output:
            self._process = subprocess.Popen(  # noqa: S603 - a fixed command
                [self._entrypoint.python, "-m", self._entrypoint.module, str(self.folder)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=dict(environment),
                cwd=self.folder,
                start_new_session=True,
                pass_fds=[lock],
            )

    def _output(self) -> IO[bytes]:
        return (self.folder / OUTPUT_FILE).open("ab")

    @contextlib.contextmanager
    def _lock(self) -> Iterator[int]:
        """Held until every process that was given it has ended."""
        lock = os.open(self.folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield lock
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
            write_atomically(self.folder / CONTROL_FILE, STOP)
        except OSError:
            # No room for the question, and so none for what it would save.
            self.kill()

    def was_told_to_stop(self) -> bool:
        return stop_requested(self.folder)

    def is_stopped(self) -> bool:
        pid = self._pid()
        return pid is not None and procfs.is_stopped(pid)

    def write_stacks(self) -> None:
        pid = self._pid()
        of_run = [] if pid is None or not self.is_alive() else [("runner", pid)]
        for name, each in [*of_run, *((found.name, found.id.pid) for found in processes.read(self.folder))]:
            with contextlib.suppress(OSError):
                with (self.folder / STACKS_FILE).open("a") as file:
                    file.write(f"\n{name}, pid {each}{' (stopped)' if procfs.is_stopped(each) else ''}:\n")
                # A run writes the stacks of a process that gets it; one after the other, as they share the file.
                os.kill(each, signal.SIGUSR1)
                time.sleep(_STACK_SECONDS)

    def kill(self) -> None:
        pid = self._pid()
        if pid is not None and self.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)

    def _pid(self) -> int | None:
        return self._process.pid if self._process is not None else self._recorded_pid()

    def clear(self) -> None:
        # Ray ends them too, but for those that are stopped.
        procfs.kill(each.id.pid for each in processes.read(self.folder))
        shutil.rmtree(self.temporary, ignore_errors=True)

    def _recorded_pid(self) -> int | None:
        """The process id that the run wrote down; sure to be its own while the lock is held."""
        try:
            return int(json.loads((self.folder / RUNNER_FILE).read_bytes())["pid"])
        except (OSError, ValueError, KeyError):
            return None


def last_lines(folder: Path) -> list[str]:
    """The last lines that the run in `folder` printed, shortened; none where it printed nothing."""
    try:
        with (folder / OUTPUT_FILE).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LAST_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    lines = [line.rpartition("\r")[2].strip() for line in text.splitlines()]
    return [line[:_LINE_CHARACTERS] for line in lines if line][-LAST_LINES:]


runners.register("local")(LocalRun)
