"""Bytes that arrive."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from services.client.aio import in_thread
from services.client.files import OnProgress, Partial, Progress


class Piece(Protocol):
    @property
    def offset_bytes(self) -> int: ...
    @property
    def chunk(self) -> bytes: ...


async def fetch(replies: AsyncIterator[Piece], partial: Partial, total: int, on_progress: OnProgress) -> None:
    """Append what is missing. The file is closed afterwards, also by an error. Raises DataLoss for a wrong offset."""
    on_progress(Progress("downloading", partial.offset, total))
    try:
        if partial.offset < total:
            async for reply in replies:
                await in_thread(partial.append, reply.offset_bytes, reply.chunk)
                on_progress(Progress("downloading", partial.offset, total))
    finally:
        partial.close()
