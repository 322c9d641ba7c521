"""Logs stay bounded: a file that has grown too long is copied aside and emptied."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from pathlib import Path

MAX_BYTES = 10_000_000
KEEP = 3
_INTERVAL_SECONDS = 5.0


def rotate(log: Path, max_bytes: int = MAX_BYTES, keep: int = KEEP) -> bool:
    """`x.log` → `x.log.1` → … → `x.log.<keep>`. True when it was long enough.

    Copied and emptied, not renamed: processes hold the file open, and Ray outlives a supervisor that could tell it to
    open another. They append, so the next line goes to the start. A line written between copy and truncation is lost.
    """
    try:
        if log.stat().st_size < max_bytes:
            return False
    except FileNotFoundError:
        return False
    for number in range(keep - 1, 0, -1):
        older = Path(f"{log}.{number}")
        if older.exists():
            older.replace(f"{log}.{number + 1}")
    shutil.copy2(log, f"{log}.1")
    with log.open("r+b") as file:
        file.truncate(0)
    return True


async def keep_short(folder: Path) -> None:
    """For ever."""
    while True:
        await asyncio.sleep(_INTERVAL_SECONDS)
        await asyncio.to_thread(_rotate_all, folder)


def _rotate_all(folder: Path) -> None:
    for log in folder.glob("*.log"):
        # A disk that is full has no room for the copy; this is tried again, and frees some once there is a little.
        with contextlib.suppress(OSError):
            rotate(log)
