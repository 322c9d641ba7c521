"""Idempotency: a request_id makes the same request, sent again, give the same resource."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from google.protobuf.message import Message

from services.mesh.errors import AlreadyExists
from services.mesh.postgres import Connection


@dataclass(frozen=True)
class RequestKey:
    """What a Create was asked for. `id` is empty when the caller sent none."""

    parent: str
    id: str
    sha256: str

    @classmethod
    def of(cls, parent: str, request_id: str, request: Message) -> RequestKey:
        return cls(
            parent, request_id.lower(), hashlib.sha256(request.SerializeToString(deterministic=True)).hexdigest()
        )


async def remember(connection: Connection, key: RequestKey, resource: str) -> str:
    """Claim `key` for `resource`, in the transaction that creates it.

    Returns `resource`, or the name that an earlier, equal request made: then nothing is to be created. Raises
    AlreadyExists when the id was used for another request.
    """
    if not key.id:
        return resource
    cursor = await connection.execute(
        "INSERT INTO requests (parent, request_id, request_sha256, resource) VALUES (%s, %s, %s, %s)"
        " ON CONFLICT (parent, request_id) DO UPDATE SET parent = requests.parent"
        " RETURNING request_sha256, resource",
        (key.parent, key.id, key.sha256, resource),
    )
    row = await cursor.fetchone()
    assert row is not None
    if row[0] != key.sha256:
        raise AlreadyExists(
            "REQUEST_ID_REUSED", f"request_id {key.id} was used for a different request", resource=row[1]
        )
    return row[1]
