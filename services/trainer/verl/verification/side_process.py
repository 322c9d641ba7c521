"""The runner's handle on the side process that checks and samples weights (services/trainer/verifier/process.py)."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import msgspec

from services.mesh.processes import procfs
from services.mesh.processes.fork_server import client as fork_client
from services.mesh.processes.fork_server.client import Forked, Request
from services.mesh.runs.files import SPOOL_FILE
from services.mesh.runs.spool import Problem, SpoolWriter
from services.models import lineage
from services.trainer.runs.records import Checkpoint, read_all
from services.trainer.verifier.requests import CheckRequest

_MEMORY = (
    "a process that ends without a word was often killed for want of memory: the machine must hold the model a second"
    " time beside the training"
)
_CHECK_DIED = "its check ended unexpectedly, twice: memory may be short for the model a second time"


# How long it may be stopped (SIGSTOP).
STOPPED_SECONDS = 20.0


class SideProcess:
    """Started with the first request. It dies with this process, which holds the other end of its input."""

    def __init__(self, folder: Path, spool: SpoolWriter) -> None:
        self._folder = folder
        self._spool = spool
        self._process: Forked | subprocess.Popen[bytes] | None = None
        self._input: IO[bytes] | None = None
        self._requests: list[CheckRequest] = []

    def check(self, request: CheckRequest) -> None:
        """Ask for a check; returns at once."""
        self._requests.append(request)
        self._send(msgspec.json.encode(request))

    def finish(self) -> None:
        """Wait until every request is answered. What a dead side process left open is checked once more, unsampled."""
        self._wait()
        left = self._unanswered()
        if left:
            message = f"the check of step {left[0].step}'s weights ended unexpectedly; it is done again without samples"
            reason, step = "CHECK_REPEATED", left[0].step
            problem = Problem(
                severity="warning", reason=reason, message=message, remedy=_MEMORY, key=str(step), step=step
            )
            self._spool.append(problem)
            for request in left:
                self._send(msgspec.json.encode(msgspec.structs.replace(request, sample=False)))
            self._wait()
        for request in self._unanswered():
            reason, step = "CHECK_DIED", request.step
            message = f"the weights of step {step} could not be checked: {_CHECK_DIED}"
            problem = Problem(
                severity="error", reason=reason, message=message, remedy=_MEMORY, key=str(step), step=step
            )
            self._spool.append(problem)
            self._spool.append(self.record(request, "corrupt", _CHECK_DIED))

    def doubt(self, step: int) -> str | None:
        """The fault that the check found in the checkpoint of `step`; None where it is READY."""
        found = self._found().get(step)
        if found is None:
            return "nothing was saved"
        return None if found.state == "ready" else found.reason

    @staticmethod
    def record(request: CheckRequest, state: str, reason: str = "") -> Checkpoint:
        return Checkpoint(
            step=request.step,
            kind=request.kind,
            state=state,  # type: ignore[arg-type]
            path=request.path,
            training_state_path=request.training_state_path,
            software=dict(lineage.software()),
            reason=reason,
        )

    def _send(self, line: bytes) -> None:
        if self._input is None:
            self._process, self._input = self._start()
        try:
            self._input.write(line + b"\n")
            self._input.flush()
        except BrokenPipeError:
            # It has died; `finish` finds what it left open.
            pass

    def _start(self) -> tuple[Forked | subprocess.Popen[bytes], IO[bytes]]:
        """The process, and what it reads: unbuffered, so that nothing is left to write when it has gone."""
        arguments = ("-m", "services.trainer.verifier", "checkpoints", str(self._folder))
        reads, writes = os.pipe()
        with os.fdopen(reads, "rb") as theirs:
            ours = os.fdopen(writes, "wb", buffering=0)
            if server := os.environ.get(fork_client.VARIABLE):
                request = Request(arguments, dict(os.environ), str(Path.cwd()))
                try:
                    return Forked(fork_client.fork(server, request, [theirs.fileno(), 1, 2])), ours
                except OSError as error:
                    print(f"the side process is started without the fork server: {error}", file=sys.stderr)
            return subprocess.Popen([sys.executable, *arguments], stdin=theirs), ours  # noqa: S603  (our own interpreter)

    def _wait(self) -> None:
        if self._process is None or self._input is None:
            return
        self._send(b'{"finish":true}')
        stopped_at: float | None = None
        while not _has_ended(self._process):
            if not procfs.is_stopped(self._process.pid):
                stopped_at = None
            elif stopped_at is None:
                stopped_at = time.monotonic()
            elif time.monotonic() - stopped_at > STOPPED_SECONDS:
                # It would stay so for ever; what it leaves open is checked once more.
                procfs.kill([self._process.pid])
        self._input.close()
        self._process = self._input = None

    def _unanswered(self) -> list[CheckRequest]:
        found = self._found()
        return [
            request for request in self._requests if request.checkpoint and found[request.step].state == "verifying"
        ]

    def _found(self) -> dict[int, Checkpoint]:
        """The last word on each step's."""
        records = read_all(self._folder / SPOOL_FILE)
        return {record.step: record for record in records if isinstance(record, Checkpoint)}


def _has_ended(process: Forked | subprocess.Popen[bytes]) -> bool:
    """Waits a second for it."""
    if isinstance(process, Forked):
        return process.wait(1)
    try:
        process.wait(1)
    except subprocess.TimeoutExpired:
        return False
    return True
