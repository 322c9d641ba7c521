"""What a job is: its states and the moves between them, its attempts, and the lease that a worker holds it by."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from services.mesh.errors import PlatformError


class State(StrEnum):
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    CANCELLING = "CANCELLING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


TERMINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})
TRANSITIONS: Mapping[State, frozenset[State]] = {
    State.QUEUED: frozenset({State.RUNNING, State.CANCELLED, State.FAILED}),
    # Back to QUEUED: an attempt failed and another one will be made.
    State.RUNNING: frozenset({State.QUEUED, State.CANCELLING, State.SUCCEEDED, State.FAILED}),
    # SUCCEEDED: it had finished before the wish to cancel arrived.
    State.CANCELLING: frozenset({State.CANCELLED, State.FAILED, State.SUCCEEDED}),
    State.SUCCEEDED: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
}


@dataclass(frozen=True)
class Job:
    """One row. `spec` is what was asked for, `progress` what moves while it runs, `error` why it failed."""

    uid: uuid.UUID
    kind: str
    name: str
    parent: str
    state: State
    priority: int
    sequence: int
    spec: dict[str, Any]
    progress: dict[str, Any]
    error: dict[str, Any] | None
    create_time: datetime
    start_time: datetime | None
    end_time: datetime | None
    # W3C trace context of the call that asked for it.
    traceparent: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "state", State(self.state))


@dataclass(frozen=True)
class Attempt:
    number: int
    start_time: datetime
    end_time: datetime | None
    end_reason: str
    resumed_from_step: int


@dataclass(frozen=True)
class Lease:
    """The right to work on a job until it expires; renewed by heartbeats."""

    job: Job
    owner: str
    token: uuid.UUID
    # The job was already running: whoever held it is gone, what it started may still live.
    taken_over: bool


def error_to_json(error: PlatformError) -> dict[str, Any]:
    """`Job.error`. PostgreSQL stores no NUL and no lone surrogates, which a foreign message may hold."""
    return {
        "code": error.code,
        "reason": error.reason,
        "message": storable(str(error)),
        "metadata": {key: storable(value) for key, value in error.metadata.items()},
    }


def storable(text: str) -> str:
    """`text` with whatever PostgreSQL refuses to store replaced by `?`."""
    return text.encode("utf-8", "replace").decode().replace("\0", "?")
