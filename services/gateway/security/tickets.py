"""Tickets: what a browser puts into an address that it opens without headers, a WebSocket or a download.

A ticket opens one path with one query, by GET, for a minute: it is an HMAC of both under a key that is made from the
token, so that nothing is stored. In an address it stands as the parameter `ticket`, which is no part of what it signs.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from starlette.responses import Response
from starlette.types import Scope

from services.gateway.http.request import Call
from services.mesh.errors import InvalidArgument, Unauthenticated, Violation
from services.mesh.rpc import protojson

PATH = "/v1/tickets"
SECONDS = 60.0
_MAX_PATH_CHARACTERS = 4096
_PARAMETER = b"ticket="
_PURPOSE = b"rlhf gateway ticket 1"
_SIGNABLE = re.compile(r"/v1/[!-~]+")
_TICKET = re.compile(r"([0-9]{1,16})\.([A-Za-z0-9_-]{43})")


class Tickets:
    def __init__(self, token: str, clock: Callable[[], float] = time.time) -> None:
        self._key = hmac.digest(token.encode(), _PURPOSE, hashlib.sha256)
        self._clock = clock

    def issue(self, path: str) -> tuple[str, float]:
        """A ticket for `path`, query included, and when it expires, in seconds since the epoch.

        Raises InvalidArgument for what cannot be a path here.
        """
        if violations := _violations(path):
            raise InvalidArgument(violations)
        milliseconds = int((self._clock() + SECONDS) * 1000)
        return f"{milliseconds}.{self._sign(milliseconds, path.removesuffix('?'))}", milliseconds / 1000

    def check(self, ticket: str, path: str) -> None:
        """Raises Unauthenticated unless `ticket` opens `path`, query included."""
        found = _TICKET.fullmatch(ticket)
        if found is None or not hmac.compare_digest(self._sign(int(found[1]), path), found[2]):
            raise Unauthenticated("WRONG_TICKET", f"the ticket is for another path or query; POST {PATH} makes one")
        if self._clock() * 1000 >= int(found[1]):
            raise Unauthenticated("TICKET_EXPIRED", f"the ticket has expired; POST {PATH} makes another one")

    def _sign(self, milliseconds: int, path: str) -> str:
        digest = hmac.digest(self._key, f"{milliseconds}\n{path}".encode(), hashlib.sha256)
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def take(scope: Scope) -> str:
    """The ticket in the query, which is taken out of it; empty without one. Raises Unauthenticated for several."""
    query: bytes = scope["query_string"]
    if _PARAMETER not in query or scope.get("method", "GET") != "GET":
        return ""
    parts = query.split(b"&")
    tickets = [part for part in parts if part.startswith(_PARAMETER)]
    if len(tickets) > 1:
        raise Unauthenticated("WRONG_TICKET", "there are several tickets in the query")
    scope["query_string"] = b"&".join(part for part in parts if not part.startswith(_PARAMETER))
    return tickets[0].removeprefix(_PARAMETER).decode("latin-1") if tickets else ""


def target(scope: Scope) -> str:
    """Path and query as they were sent, without the ticket."""
    path, query = scope["raw_path"].decode("latin-1"), scope["query_string"].decode("latin-1")
    return f"{path}?{query}" if query else path


class TicketEndpoint:
    """`{"path": "/v1/…"}` → `{"ticket", "expireTime"}`."""

    def __init__(self, tickets: Tickets) -> None:
        self._tickets = tickets

    async def __call__(self, call: Call, captured: dict[str, str]) -> Response:
        ticket, expires = self._tickets.issue(_path(protojson.loads(await call.json_body() or b"{}")))
        expire_time = datetime.fromtimestamp(expires, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return Response(json.dumps({"ticket": ticket, "expireTime": expire_time}), media_type="application/json")


def _path(tree: Any) -> str:
    if not isinstance(tree, dict):
        raise InvalidArgument.of("body", "must be a JSON object with a path")
    violations = [Violation(str(name)[:60], "is not known; send a path") for name in tree if name != "path"]
    if not isinstance(path := tree.get("path"), str):
        violations.append(Violation("path", "must be what is opened: a path under /v1/ with its query"))
        raise InvalidArgument(violations)
    if violations := violations + _violations(path):
        raise InvalidArgument(violations)
    return path


def _violations(path: str) -> list[Violation]:
    found: list[Violation] = []
    if not _SIGNABLE.fullmatch(path) or "#" in path:
        found.append(Violation("path", "must begin with /v1/ and be percent-encoded, as it is sent"))
    if len(path) > _MAX_PATH_CHARACTERS:
        found.append(Violation("path", f"must have at most {_MAX_PATH_CHARACTERS} characters"))
    if "?ticket=" in path or "&ticket=" in path:
        found.append(Violation("path", "must not hold a ticket itself"))
    return found
