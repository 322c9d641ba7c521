"""Processes of an earlier supervisor that was killed, or of a mesh that is being taken down."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from services.mesh.processes import procfs
from services.mesh.processes.procfs import ProcessId
from services.supervisor.embedded.process import end_session
from services.supervisor.state import MeshState

# Set for every process of a mesh, and for nothing else: that is how a training that detached itself is found.
MARK = "RLHF_SUPERVISED_HOME"
_GRACE_SECONDS = 10.0


def find(state: MeshState | None) -> dict[str, ProcessId]:
    """The processes of `state` that still live, by name."""
    processes = state.processes if state is not None else []
    return {each.name: each.id for each in processes if each.id is not None and each.id.alive()}


async def end(processes: Iterable[ProcessId], grace_seconds: float = _GRACE_SECONDS) -> None:
    """SIGTERM, and after the grace period SIGKILL, to each and to what it leaves in its session."""
    processes = [each for each in processes if each.alive()]
    for each in processes:
        procfs.kill([each.pid], signal.SIGTERM)
    left = await _until_gone(processes, grace_seconds)
    procfs.kill(each.pid for each in left)
    for each in processes:
        await end_session(each.pid)
    await _until_gone(left, grace_seconds)


async def _until_gone(processes: Sequence[ProcessId], seconds: float) -> list[ProcessId]:
    """Those that are left after `seconds`."""
    deadline = time.monotonic() + seconds
    while (left := [each for each in processes if each.alive()]) and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    return left


def detached(home: Path, supervised: Iterable[int]) -> list[ProcessId]:
    """The processes of the mesh in `home` outside the process trees of `supervised`: trainings, as a rule."""
    ours = {os.getpid()}
    for pid in supervised:
        ours.update(procfs.tree(pid))
    return [each for each in procfs.with_variable(MARK, str(home)) if each.pid not in ours]


async def end_all(home: Path, state: MeshState, grace_seconds: float) -> list[str]:
    """End what a supervisor that is gone has left, in the order of stopping. The names of what was ended."""
    found = find(state)
    for name in reversed(found):
        await end([found[name]], grace_seconds)
    trainings = detached(home, ())
    await end(trainings, grace_seconds)
    return [*reversed(found), *(f"training process {each.pid}" for each in trainings)]
