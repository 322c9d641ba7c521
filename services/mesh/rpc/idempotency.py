"""Idempotency: a request_id makes the same request, sent again, give the same resource."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from google.protobuf.message import Message

from services.mesh.db.postgres import Connection
from services.mesh.errors import AlreadyExists


@dataclass(frozen=True)
class RequestKey:
    """What a Create was asked for. `id` is empty when the caller sent none; `sha256` is of everything but the id."""

    parent: str
    id: str
    sha256: str

    @classmethod
    def of(cls, parent: str, request_id: str, request: Message) -> RequestKey:
        asked = type(request)()
        asked.CopyFrom(request)
        if "request_id" in request.DESCRIPTOR.fields_by_name:
            asked.ClearField("request_id")
        digest = hashlib.sha256(f"{request.DESCRIPTOR.full_name}\n".encode())
        digest.update(asked.SerializeToString(deterministic=True))
        return cls(parent, request_id.lower(), digest.hexdigest())


async def claim(connection: Connection, key: RequestKey, resource: str) -> str | None:
    """Claim `key` for `resource`, in the transaction that creates it.

    Returns None when it is to be created, or the name that an earlier, equal request made (the same one when the caller
    chose the id). Raises AlreadyExists when the id was used for another request.
    """
    if not key.id:
        return None
    cursor = await connection.execute(
        "INSERT INTO requests (parent, request_id, request_sha256, resource) VALUES (%s, %s, %s, %s)"
        # Waits for an equal request that is under way. A row that was inserted and not updated has xmax 0.
        " ON CONFLICT (parent, request_id) DO UPDATE SET parent = requests.parent"
        " RETURNING request_sha256, resource, xmax = 0",
        (key.parent, key.id, key.sha256, resource),
    )
    row = await cursor.fetchone()
    assert row is not None
    sha256, earlier, is_new = row
    return None if is_new else _same(key, sha256, earlier)


async def find_previous(connection: Connection, key: RequestKey) -> str | None:
    """What an earlier, equal request made: asked before a request is checked, since what was right then may be wrong by
    now. Raises AlreadyExists when the id was used for another request."""
    cursor = await connection.execute(
        "SELECT request_sha256, resource FROM requests WHERE parent = %s AND request_id = %s", (key.parent, key.id)
    )
    row = await cursor.fetchone()
    return _same(key, *row) if row is not None else None


def _same(key: RequestKey, sha256: str, resource: str) -> str:
    if sha256 != key.sha256:
        message = f"request_id {key.id} was used for a different request"
        raise AlreadyExists("REQUEST_ID_REUSED", message, resource=resource)
    return resource
