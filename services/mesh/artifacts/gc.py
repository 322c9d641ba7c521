"""The collector: removes blobs that no reference reaches. Any number of processes may run it on one store.

`collect` looks at what has lost a reference, `sweep` at the whole store: there lie blobs too that never got one,
because who stored them failed or died. A blob without a reference is left to its writer for `grace_seconds`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

from services.mesh import catalog
from services.mesh.artifacts import references
from services.mesh.artifacts.collecting_store import CollectingStore
from services.mesh.artifacts.marker import owns
from services.mesh.db.postgres import Connection, Database, wait
from services.mesh.errors import DataLoss, NotFound, Unavailable

log = logging.getLogger(__name__)

SWEEP_SECONDS = 3600.0
# After a failure.
RETRY_SECONDS = 30.0
# Blobs of one transaction: nobody who adds a reference waits for long.
_BATCH = 200


class Collector:
    def __init__(self, database: Database, artifacts: CollectingStore, grace_seconds: float) -> None:
        self._database = database
        self._artifacts = artifacts
        self._grace = timedelta(seconds=grace_seconds)

    async def run(self) -> None:
        """A worker's routine: collect whenever something was released, sweep now and then, until cancelled."""
        loop = asyncio.get_running_loop()
        next_sweep = loop.time()
        with self._database.notices.subscribe(references.RELEASED_TOPIC) as released:
            while True:
                pause = RETRY_SECONDS
                try:
                    await self.collect()
                    if loop.time() >= next_sweep:
                        await self.sweep()
                        next_sweep = loop.time() + SWEEP_SECONDS
                    pause = max(1.0, next_sweep - loop.time())
                except Unavailable as error:
                    log.warning("nothing is collected: %s", error)
                except Exception:
                    log.exception("the collection failed")
                await wait(released, pause)

    async def collect(self) -> int:
        """Remove what was released and is not referenced; of how many blobs. Nothing waits for a grace here: who
        stores the same bytes meanwhile finds them missing when adding the reference, and stores them again."""
        await self._learn()
        removed = 0
        while True:
            async with self._database.transaction() as connection:
                await references.lock(connection, exclusive=True)
                rows = await _released(connection)
                if not rows or not await self._may_collect(connection):
                    return removed
                blobs = sorted({sha256 for _, sha256 in rows})
                removed += await self._remove(connection, await _unreached(connection, blobs))
                await _forget(connection, [ordinal for ordinal, _ in rows], blobs)

    async def sweep(self) -> int:
        """Remove every blob of the store that is not referenced and older than the grace; of how many."""
        await self._learn()
        blobs, removed = await self._artifacts.blobs(), 0
        for start in range(0, len(blobs), _BATCH):
            batch = blobs[start : start + _BATCH]
            async with self._database.transaction() as connection:
                lost = await _unreached(connection, batch)
            old = [sha256 for sha256 in lost if await self._is_old(sha256)]
            if not old:
                continue
            async with self._database.transaction() as connection:
                await references.lock(connection, exclusive=True)
                if not await self._may_collect(connection):
                    return removed
                removed += await self._remove(connection, await _unreached(connection, old))
        if removed:
            log.info("removed %d blobs that nothing needs", removed)
        return removed

    async def _remove(self, connection: Connection, blobs: Iterable[str]) -> int:
        """The transaction holds the lock; that it still does is asked before each: without it somebody may have come
        to need the blob. One that cannot be removed keeps no other, and is left to the next sweep."""
        count = 0
        for sha256 in blobs:
            await connection.execute("SELECT 1")
            try:
                await self._artifacts.remove([sha256])
                count += 1
            except OSError as error:
                log.warning("blob %s cannot be removed; the next sweep tries again: %s", sha256, error)
        return count

    async def _is_old(self, sha256: str) -> bool:
        try:
            return datetime.now(UTC) - await self._artifacts.modified(sha256) > self._grace
        except (FileNotFoundError, NotFound):
            return False

    async def _learn(self) -> None:
        """Read the manifests of artifacts that are held since before there were references."""
        async with self._database.transaction() as connection:
            cursor = await connection.execute(
                "SELECT sha256 FROM artifacts.contents AS c WHERE NOT known"
                " AND EXISTS (SELECT FROM artifacts.blob_references AS r WHERE r.sha256 = c.sha256)"
            )
            unknown = [row[0] async for row in cursor]
        for sha256 in unknown:
            try:
                manifest = await self._artifacts.manifest(sha256)
            except (NotFound, DataLoss) as error:
                log.warning("manifest %s cannot be read, and what it names stays: %s", sha256, error)
                continue
            async with self._database.transaction() as connection:
                await references.record(connection, sha256, [file.sha256 for file in manifest.files])

    async def _may_collect(self, connection: Connection) -> bool:
        """Whether all that is needed is known, and the store is the one that the references speak of."""
        if not await owns(connection, self._artifacts):
            return False
        if unread := await _held_unread(connection):
            log.error(
                "nothing is collected: the manifests of %s cannot be read, so nobody knows what belongs to them;"
                " delete these, or restore the artifact store",
                ", ".join(unread),
            )
            return False
        if missing := await _not_moved(connection):
            log.warning("nothing is collected until the services of schema %s have started", ", ".join(missing))
            return False
        return True


async def _released(connection: Connection) -> list[tuple[int, str]]:
    cursor = await connection.execute(
        "SELECT ordinal, sha256 FROM artifacts.released ORDER BY ordinal LIMIT %s", (_BATCH,)
    )
    return [(row[0], row[1]) async for row in cursor]


async def _unreached(connection: Connection, blobs: Sequence[str]) -> list[str]:
    """Those that no reference reaches, be it directly or by a content that they belong to."""
    cursor = await connection.execute(
        "SELECT asked.blob FROM unnest(%s::text[]) AS asked (blob)"
        " WHERE NOT EXISTS (SELECT FROM artifacts.blob_references AS r WHERE r.sha256 = asked.blob)"
        " AND NOT EXISTS (SELECT FROM artifacts.content_blobs AS c"
        "  JOIN artifacts.blob_references AS r ON r.sha256 = c.content WHERE c.blob = asked.blob)",
        (list(blobs),),
    )
    return [row[0] async for row in cursor]


async def _forget(connection: Connection, ordinals: Sequence[int], contents: Sequence[str]) -> None:
    await connection.execute("DELETE FROM artifacts.released WHERE ordinal = ANY(%s)", (list(ordinals),))
    await connection.execute(
        "DELETE FROM artifacts.contents AS c WHERE sha256 = ANY(%s)"
        " AND NOT EXISTS (SELECT FROM artifacts.blob_references AS r WHERE r.sha256 = c.sha256)",
        (list(contents),),
    )


async def _held_unread(connection: Connection) -> list[str]:
    """Names of some holders of artifacts whose blobs nobody knows."""
    cursor = await connection.execute(
        "SELECT DISTINCT holder FROM artifacts.blob_references JOIN artifacts.contents USING (sha256)"
        " WHERE NOT known ORDER BY holder LIMIT 5"
    )
    return [row[0] async for row in cursor]


async def _not_moved(connection: Connection) -> list[str]:
    """Schemas of services that have started here with earlier code only. Looked for where those are seen, too, that
    this role may not read."""
    cursor = await connection.execute(
        "SELECT nspname FROM pg_catalog.pg_class JOIN pg_catalog.pg_namespace ON pg_namespace.oid = relnamespace"
        " WHERE relname = 'migrations' AND relkind = 'r' AND nspname = ANY(%s)"
        " AND nspname NOT IN (SELECT schema FROM artifacts.services) ORDER BY nspname",
        (list(catalog.SERVICES),),
    )
    return [row[0] async for row in cursor]
