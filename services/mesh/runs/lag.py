"""How far the reading of a run is behind its writing."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from services.mesh.telemetry import metrics
from services.mesh.telemetry.metrics import Observation


class Lag:
    """Of one spool. Told by its reader how far it has come, asked by the exporter's thread."""

    def __init__(self, spool: Path) -> None:
        self._spool = spool
        self._stored_bytes = 0
        # When last nothing was left to read, on the monotonic clock.
        self._caught_up_at = time.monotonic()

    def stored(self, offset_bytes: int) -> None:
        """Everything before `offset_bytes` is stored."""
        self._stored_bytes = offset_bytes
        if not self.unread_bytes():
            self._caught_up_at = time.monotonic()

    def unread_bytes(self) -> int:
        try:
            return max(0, self._spool.stat().st_size - self._stored_bytes)
        except OSError:
            return 0

    def seconds(self) -> float:
        """Since when there is something to read; 0 when there is nothing."""
        return time.monotonic() - self._caught_up_at if self.unread_bytes() else 0.0

    @contextlib.contextmanager
    def observed(self) -> Iterator[None]:
        """Part of the figures of this process as long as the block lasts."""
        with (
            metrics.observed("rlhf.spool.unread", lambda: _one(self.unread_bytes())),
            metrics.observed("rlhf.spool.delay", lambda: _one(self.seconds())),
            metrics.observed("rlhf.spool.followed", lambda: _one(1)),
        ):
            yield


def _one(value: float) -> Iterable[Observation]:
    return (Observation(value),)
