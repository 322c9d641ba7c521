"""SQL of the dataset service, by noun: rows in, dataclasses out. Every function runs in its caller's transaction."""

from __future__ import annotations

from uuid import UUID

from services.mesh.errors import InvalidArgument
from services.mesh.rpc.pagination import PageRequest


def before_uid(page: PageRequest) -> UUID | None:
    """Where a list in falling order of `uid` goes on. Raises InvalidArgument: a token can be forged."""
    if page.after is None:
        return None
    try:
        return UUID(str(page.after[0]))
    except ValueError:
        raise InvalidArgument.of("page_token", "is not a token that a list returned") from None
