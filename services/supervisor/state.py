"""What the supervisor tells of itself in `run/state.json`, for `up`, `down`, `status` and its own successor."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

import msgspec

from services.mesh.processes.procfs import ProcessId
from services.supervisor.embedded.home import write_private


class Phase(StrEnum):
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    STOPPED = "stopped"
    # It came up only in part and was stopped again; `message` says why.
    FAILED = "failed"


class Stage(StrEnum):
    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    STOPPED = "stopped"
    FAILED = "failed"


class ProcessState(msgspec.Struct, frozen=True):
    name: str
    stage: Stage = Stage.WAITING
    id: ProcessId | None = None
    restarts: int = 0
    address: str = ""
    # From its start until it was ready.
    ready_seconds: float = 0.0
    # Whether an earlier supervisor started it.
    adopted: bool = False
    # How it ended last.
    message: str = ""


class MeshState(msgspec.Struct, frozen=True):
    supervisor: ProcessId
    phase: Phase
    seconds: float = 0.0
    message: str = ""
    processes: list[ProcessState] = []

    def alive(self) -> bool:
        """Whether the supervisor that wrote this still runs."""
        return self.supervisor.alive()


def write(path: Path, state: MeshState) -> None:
    write_private(path, msgspec.json.encode(state).decode())


def read(path: Path) -> MeshState | None:
    """None when there is none, or none that can be read: a home that never was up, or another version's."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=MeshState)
    except (OSError, msgspec.MsgspecError):
        return None
