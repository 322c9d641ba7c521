"""Which database holds the references to an artifact store: the store bears its id.

Each process reads RLHF_POSTGRES_URL and RLHF_ARTIFACTS_URL for itself. Were two of them on one store with references in
different databases, each would collect what the other needs; so the second one does not start.
"""

from __future__ import annotations

import logging
from uuid import UUID

from services.mesh.artifacts.collecting_store import CollectingStore
from services.mesh.db.postgres import Connection, Database
from services.mesh.errors import FailedPrecondition, ResourceExhausted

log = logging.getLogger(__name__)

MARKER = "references"


async def claim(database: Database, artifacts: CollectingStore) -> None:
    """Mark a store that bears no id yet. Raises FailedPrecondition where it is that of another database.

    One that was marked and is not any more is not mounted, or empty: left alone, so that this is seen.
    """
    async with database.transaction() as connection:
        cursor = await connection.execute("SELECT id, marked FROM artifacts.identity FOR UPDATE")
        row = await cursor.fetchone()
        assert row is not None
        id_, marked = row
        found = await artifacts.read_note(MARKER)
        if found is None and not marked:
            try:
                await artifacts.write_note(MARKER, str(id_))
            except ResourceExhausted as error:
                log.warning("the artifact store is not marked yet, and nothing is collected: %s", error)
                return
            found = str(id_)
        if found is not None and found != str(id_):
            message = (
                f"the artifact store at {artifacts.url} is referred to from another database. All services need the"
                " same RLHF_POSTGRES_URL, or another RLHF_ARTIFACTS_URL; if that database is gone for good, delete"
                f" {artifacts.url}/{MARKER} and start again"
            )
            raise FailedPrecondition("ARTIFACT_STORE_OF_ANOTHER", message, url=artifacts.url)
        if found is not None and not marked:
            await connection.execute("UPDATE artifacts.identity SET marked = true")


async def owns(connection: Connection, artifacts: CollectingStore) -> bool:
    """Whether the store bears the id of this database."""
    row = await (await connection.execute("SELECT id FROM artifacts.identity")).fetchone()
    assert row is not None and isinstance(row[0], UUID)
    found = await artifacts.read_note(MARKER)
    if found == str(row[0]):
        return True
    log.warning(
        "nothing is collected: %s is %s", artifacts.url, "not marked" if found is None else "of another database"
    )
    return False
