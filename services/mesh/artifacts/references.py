"""References to what lies in the artifact store: which resource needs which bytes, for all services in one place.

A reference is (holder, resource, sha256): `holder` is the full name of the resource that needs the bytes, `resource`
that of the resource it uses them as (a job's base model; empty where the bytes are the holder's own), `sha256` a blob
or a content, which is an artifact by the hash of its manifest or a dataset version by its hash. The collector (gc.py)
removes blobs that no reference reaches.

Every function runs in its caller's transaction, so that state and references commit together. Three rules make that
safe beside a collector:

- Who adds a reference to bytes that it has just stored locks (shared) first, and then looks whether they are still
  there: found to be in the store already, they may have been collected since.
- Who asks for users in order to remove what they use locks exclusively first.
- The lock is taken after the rows of jobs and before all other rows.
"""

from __future__ import annotations

from collections.abc import Iterable

from services.mesh.db.postgres import Connection

# Any number will do, as long as all services take the same lock.
LOCK = 0x72656673
# The notice after which there may be something to collect.
RELEASED_TOPIC = "released"
# Of a column: the name itself, or one below it. `0` is the character after `/`.
_BELOW = (
    "({0} = %(name)s OR ({0} || '/') COLLATE \"C\" >= %(name)s || '/' AND ({0} || '/') COLLATE \"C\" < %(name)s || '0')"
)


async def lock(connection: Connection, *, exclusive: bool = False) -> None:
    """Until the transaction ends nothing is collected; with `exclusive` nobody adds a reference, either."""
    function = "pg_advisory_xact_lock" if exclusive else "pg_advisory_xact_lock_shared"
    await connection.execute(f"SELECT {function}({LOCK})".encode())


async def add(connection: Connection, holder: str, sha256: str, resource: str = "") -> None:
    """Hold bytes. Adding a reference again does nothing."""
    await lock(connection)
    await connection.execute(
        "INSERT INTO artifacts.blob_references (holder, resource, sha256) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
        (holder, resource, sha256),
    )


async def add_content(connection: Connection, holder: str, sha256: str, blobs: Iterable[str]) -> None:
    """Hold a content of the holder's own, and write down which blobs make it."""
    await add(connection, holder, sha256)
    await record(connection, sha256, blobs)


async def record(connection: Connection, sha256: str, blobs: Iterable[str]) -> None:
    """Write down which blobs make a content."""
    await connection.execute(
        "INSERT INTO artifacts.contents (sha256, known) VALUES (%s, true)"
        " ON CONFLICT (sha256) DO UPDATE SET known = true",
        (sha256,),
    )
    await connection.execute(
        "INSERT INTO artifacts.content_blobs (content, blob) SELECT %s, blob FROM unnest(%s::text[]) AS blob"
        " ON CONFLICT DO NOTHING",
        (sha256, sorted(set(blobs))),
    )


async def drop(connection: Connection, holder: str) -> None:
    """Hold nothing any more."""
    await _drop(connection, "holder = %(name)s", holder)


async def drop_below(connection: Connection, holder: str) -> None:
    """The same, and with it all resources below it by name."""
    await _drop(connection, _BELOW.format("holder"), holder)


async def drop_inputs(connection: Connection, holder: str) -> None:
    """Use no other resource any more; the holder's own bytes stay."""
    await _drop(connection, "holder = %(name)s AND resource <> ''", holder)


async def release(connection: Connection, blobs: Iterable[str]) -> None:
    """Have the collector look at blobs that were stored for nothing."""
    await connection.execute("INSERT INTO artifacts.released (sha256) SELECT unnest(%s::text[])", (sorted(set(blobs)),))
    await _notify(connection)


async def users(connection: Connection, resource: str, *, of_name: bool = False) -> list[str]:
    """Names of the holders that use a resource or one below it, but for those that are below it themselves. `of_name`:
    those only that need what bytes alone do not give."""
    cursor = await connection.execute(
        f"SELECT DISTINCT holder FROM artifacts.blob_references WHERE resource <> '' AND {_BELOW.format('resource')}"
        f" AND NOT {_BELOW.format('holder')} AND (sha256 = '' OR NOT %(of_name)s) ORDER BY holder".encode(),
        {"name": resource, "of_name": of_name},
    )
    return [row[0] async for row in cursor]


async def used(connection: Connection, resource: str) -> frozenset[str]:
    """Names of the resources below this one that some holder uses, whoever it is."""
    cursor = await connection.execute(
        f"SELECT DISTINCT resource FROM artifacts.blob_references WHERE resource <> ''"
        f" AND {_BELOW.format('resource')}".encode(),
        {"name": resource},
    )
    return frozenset([row[0] async for row in cursor])


async def holds(connection: Connection, holder: str, sha256: str) -> bool:
    """Whether this holder needs a content as its own."""
    cursor = await connection.execute(
        "SELECT FROM artifacts.blob_references WHERE (holder, resource, sha256) = (%s, '', %s)", (holder, sha256)
    )
    return await cursor.fetchone() is not None


async def keeps_references(connection: Connection, service: str) -> bool:
    """Whether a service has its references here; one with a database of its own has not."""
    cursor = await connection.execute("SELECT FROM artifacts.services WHERE schema = %s", (service,))
    return await cursor.fetchone() is not None


async def is_held(connection: Connection, sha256: str) -> bool:
    """Whether anybody needs a content, so that its bytes are there."""
    cursor = await connection.execute("SELECT FROM artifacts.blob_references WHERE sha256 = %s LIMIT 1", (sha256,))
    return await cursor.fetchone() is not None


async def _drop(connection: Connection, condition: str, name: str) -> None:
    cursor = await connection.execute(
        "WITH dropped AS ("
        f" DELETE FROM artifacts.blob_references WHERE {condition} RETURNING sha256"
        "), lost AS (SELECT DISTINCT sha256 FROM dropped WHERE sha256 <> '')"
        " INSERT INTO artifacts.released (sha256) SELECT sha256 FROM lost"
        " UNION SELECT blob FROM lost JOIN artifacts.content_blobs ON content = lost.sha256".encode(),
        {"name": name},
    )
    if cursor.rowcount:
        await _notify(connection)


async def _notify(connection: Connection) -> None:
    """Wake the collectors of the schemas of all services."""
    await connection.execute("SELECT pg_notify('rlhf_' || schema, %s) FROM artifacts.services", (RELEASED_TOPIC,))
