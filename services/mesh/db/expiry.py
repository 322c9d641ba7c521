"""Removing what nobody asks for any more, by age: keys of requests, marks of consumed events, files never finished.

The event log stays: StreamJobEvents replays it from any sequence, and it says who did what. Blobs that nothing needs
are the collector's (artifacts/gc.py).
"""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta

import fsspec

from services.mesh.db.postgres import Database
from services.mesh.errors import Unavailable
from services.mesh.settings import KeepSettings

log = logging.getLogger(__name__)

SECONDS = 3600.0
# Rows of one transaction: none holds locks for long.
_BATCH = 1000
# What each row is dated by; an index on it finds the old ones.
_AGES = {"requests": "create_time", "consumed_events": "consume_time"}


class Sweeper:
    """A worker's routine. Any number of processes may sweep the same tables and the same store."""

    def __init__(self, database: Database, artifacts_url: str, keep: KeepSettings) -> None:
        self._database = database
        self._keep = keep
        self._unfinished = Unfinished(artifacts_url, keep.unfinished_seconds)

    async def run(self) -> None:
        """Until cancelled. What could not be removed is tried again the next time."""
        while True:
            try:
                removed = await self.sweep()
                log.log(logging.INFO if any(removed.values()) else logging.DEBUG, "swept: %s", removed)
            except Unavailable as error:
                log.warning("nothing is swept: %s", error)
            except Exception:
                log.exception("the sweep failed")
            await asyncio.sleep(SECONDS)

    async def sweep(self) -> dict[str, int]:
        """How many rows of each table, and files, were removed."""
        return {
            "requests": await self._sweep_rows("requests", self._keep.requests_seconds),
            "consumed_events": await self._sweep_rows("consumed_events", self._keep.consumed_events_seconds),
            "files": await self._unfinished.remove(),
        }

    async def _sweep_rows(self, table: str, age_seconds: float) -> int:
        """By the clock of the database, which is the one that the rows were dated by."""
        column, count = _AGES[table], 0
        query = (
            f"DELETE FROM {table} WHERE ctid = ANY(ARRAY(SELECT ctid FROM {table}"  # noqa: S608 - of _AGES
            f" WHERE {column} < now() - make_interval(secs => %s) ORDER BY {column} LIMIT %s FOR UPDATE SKIP LOCKED))"
        )
        while True:
            async with self._database.transaction() as connection:
                cursor = await connection.execute(query.encode(), (age_seconds, _BATCH))
            count += cursor.rowcount
            if cursor.rowcount < _BATCH:
                return count


class Unfinished:
    """Files of the artifact store whose writer is gone: no blob yet, and known to nobody."""

    def __init__(self, artifacts_url: str, age_seconds: float) -> None:
        self._filesystem, root = fsspec.url_to_fs(artifacts_url, use_listings_cache=False)
        # Where `ArtifactStore` writes what is not yet a blob.
        self._folder = f"{root}/writing"
        self._age = timedelta(seconds=age_seconds)
        # When each had last been written to, at the last look.
        self._seen: dict[str, datetime] = {}

    async def remove(self) -> int:
        """Those that are too old and were not written to since the last look.

        Two looks, because one is fooled by a clock that jumps ahead: every file that is being written looks old then.
        """
        return await asyncio.to_thread(self._remove)

    def _remove(self) -> int:
        now, count, seen = datetime.now(UTC), 0, {}
        for path in self._filesystem.find(self._folder):
            try:
                written = self._filesystem.modified(path)
                if now - written < self._age:
                    continue
                if self._seen.get(path) == written:
                    self._filesystem.rm(path)
                    count += 1
                else:
                    seen[path] = written
            except FileNotFoundError:  # finished, or removed by another process
                continue
        self._seen = seen
        return count
