"""Saying again and again what a run waits for, so that it is not taken for one that hangs."""

from __future__ import annotations

import time
from collections.abc import Callable

REPEAT_SECONDS = 60.0


class Repeated:
    """Calls `say` the first time it is called, and then at most once in REPEAT_SECONDS."""

    def __init__(self, say: Callable[[], None]) -> None:
        self._say = say
        self._said_at: float | None = None

    def __call__(self) -> None:
        now = time.monotonic()
        if self._said_at is None or now - self._said_at >= REPEAT_SECONDS:
            self._said_at = now
            self._say()
