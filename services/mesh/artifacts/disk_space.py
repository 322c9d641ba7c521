"""A look at the disk of a service's files, by which health says that it is nearly full before writes fail."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from services.mesh.telemetry.outage_log import OutageLog

log = logging.getLogger(__name__)

LOOK_SECONDS = 10.0


class DiskSpace:
    """Looks at the disks of `folders` now and then. `told` hears whether each has at least `low_bytes` left."""

    def __init__(
        self,
        folders: Sequence[Path],
        low_bytes: int,
        told: Callable[[bool], Awaitable[None]],
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        self._folders = folders
        self._low_bytes = low_bytes
        self._told = told
        self._look_seconds = look_seconds
        self._outage = OutageLog(
            log, "the disk is nearly full; uploads, checkpoints and PostgreSQL will soon be refused"
        )

    async def run(self) -> None:
        """Until cancelled."""
        was_enough: bool | None = None
        while True:
            free = await asyncio.to_thread(_least_free, self._folders)
            enough = free is None or free[0] >= self._low_bytes
            if free is None or enough:
                self._outage.over()
            else:
                self._outage.failed(f"{free[0] >> 20} MiB free at {free[1]}, fewer than {self._low_bytes >> 20} MiB")
            if enough is not was_enough:
                was_enough = enough
                await self._told(enough)
            await asyncio.sleep(self._look_seconds)


def _least_free(folders: Sequence[Path]) -> tuple[int, Path] | None:
    """Bytes that a user may still write, and where; None where that cannot be found out."""
    found = []
    for folder in folders:
        try:
            existing = next((each for each in (folder, *folder.parents) if each.exists()), folder)
            found.append((shutil.disk_usage(existing).free, folder))
        except OSError:
            continue
    return min(found, default=None)
