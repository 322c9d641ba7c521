"""How fast a writer of an upload must send: who is silent, and who sends a byte now and then, is given up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import TypeVar

from services.mesh.errors import DeadlineExceeded

T = TypeVar("T")


class Pace:
    """Of one call. Counts the time in which the service waits for the writer, not that in which the writer waits for
    the service's disk."""

    def __init__(self, idle_seconds: float, least_bytes_per_second: int) -> None:
        self._idle_seconds = idle_seconds
        self._least_bytes_per_second = least_bytes_per_second
        self._waited_seconds = 0.0
        self._came_bytes = 0

    async def next(self, pieces: AsyncIterator[T]) -> T | None:
        """What is sent next, None at the end. Raises DeadlineExceeded when nothing comes for `idle_seconds`."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._idle_seconds):
                piece = await anext(pieces, None)
        except TimeoutError:
            message = f"nothing came for {self._idle_seconds:g} s; what came before is kept"
            raise DeadlineExceeded("WRITER_IDLE", message) from None
        self._waited_seconds += time.monotonic() - began
        return piece

    def check(self, size: int, received_bytes: int) -> None:
        """Count a piece of `size` bytes, with which there are `received_bytes` of the file.

        Raises DeadlineExceeded when less than the least came since waiting `idle_seconds` for it began.
        """
        self._came_bytes += size
        if self._waited_seconds < self._idle_seconds:
            return
        if self._came_bytes < self._least_bytes_per_second * self._waited_seconds:
            raise DeadlineExceeded(
                "WRITER_SLOW",
                f"{self._came_bytes} bytes came in {self._waited_seconds:.3g} s, less than "
                f"{self._least_bytes_per_second} a second (RLHF_DATASET_WRITE_LEAST_BYTES_PER_SECOND); "
                f"{received_bytes} bytes are kept: go on there, faster",
                received_bytes=received_bytes,
                least_bytes_per_second=self._least_bytes_per_second,
            )
        self._waited_seconds, self._came_bytes = 0.0, 0
