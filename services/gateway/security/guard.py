"""What every HTTP request and WebSocket handshake passes first: host, origin, token or ticket, the number of open
requests; and every answer last."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ipaddress
import logging
import re
import uuid
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.gateway.http import headers, static_files
from services.gateway.http.problems import HttpError, problem
from services.gateway.http.request import REQUEST_ID
from services.gateway.security import cors, tickets
from services.gateway.security.open_requests import Slot, Slots
from services.gateway.security.tickets import Tickets
from services.gateway.settings import GatewaySettings
from services.gateway.streams.server_stream import OpenStreams
from services.mesh import identity
from services.mesh.errors import PermissionDenied, PlatformError

log = logging.getLogger(__name__)

# A probe has no token and knows no host name; what it is told is no secret.
_OPEN_PATHS = ("/healthz", "/readyz", "/openapi.json")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
# Of every answer that does not say otherwise.
_OWN_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)
# How long the rest of a request is read and thrown away after an early answer. Most clients read the answer only when
# they have sent everything, and closing a socket with unread bytes resets the connection under them.
_LINGER_SECONDS = 30.0
_LINGER_STRANGER_SECONDS = 2.0


class Guard:
    """Tickets stand in for the token where a browser opens an address."""

    def __init__(
        self, app: ASGIApp, settings: GatewaySettings, token: str, streams: OpenStreams, issued: Tickets
    ) -> None:
        self._app = app
        self._token = token
        self._tickets = issued
        self._hosts = frozenset({"localhost", _host(settings.http_listen), *settings.allowed_hosts})
        self._slots = Slots(settings.max_concurrent_requests, streams)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = headers.of(scope)
        given = asked.get("x-request-id", "")
        scope[REQUEST_ID] = request_id = given if _REQUEST_ID.fullmatch(given) else str(uuid.uuid4())
        slot = self._slots.take((scope.get("client") or ("", 0))[0])
        exchange = _Exchange(receive, send, asked, request_id, slot)
        try:
            self._check(scope, asked)
            exchange.linger_seconds = _LINGER_SECONDS
            with slot.sending(exchange.body_left):
                await self._app(scope, exchange.receive, exchange.send)
        except Exception as error:
            if exchange.started:
                # The status line is out: a broken connection is the only way left to say so.
                log.warning("answer broken off: %s", error, extra={"request_id": request_id, "path": scope["path"]})
                return
            if not isinstance(error, PlatformError | HttpError):
                log.exception("unhandled error", extra={"request_id": request_id, "path": scope["path"]})
            # Who goes on sending after his answer takes nobody's place.
            slot.leave()
            await problem(error, request_id)(scope, exchange.receive, exchange.send)
        finally:
            slot.leave()

    def _check(self, scope: Scope, asked: Mapping[str, str]) -> None:
        """Raises what refuses the request."""
        self._slots.check()
        origin = asked.get("origin")
        is_own = origin is None or urlsplit(origin).netloc.lower() == asked.get("host", "").lower()
        if not is_own and not scope.get(cors.ALLOWED):
            raise PermissionDenied("ORIGIN_NOT_ALLOWED", "requests from pages of another origin are refused")
        if scope["path"] in _OPEN_PATHS:
            return
        self._check_host(asked.get("host", ""))
        if scope["type"] == "http" and static_files.is_open(scope["path"]):
            return
        identity.become(self._authenticate(scope, asked.get("authorization", "")))

    def _authenticate(self, scope: Scope, authorization: str) -> identity.Principal:
        ticket = tickets.take(scope)
        if ticket and not authorization:
            self._tickets.check(ticket, tickets.target(scope))
            # The services behind are called with it.
            headers.of(scope)["authorization"] = authorization = f"Bearer {self._token}"
        return identity.authenticate([("authorization", authorization)], self._token)

    def _check_host(self, header: str) -> None:
        """A page whose name was rebound to this address shows itself by its Host header."""
        host = _host(header)
        if host in self._hosts or "*" in self._hosts or _is_loopback(host):
            return
        message = f"the host {host!r} is not served here; RLHF_GATEWAY_ALLOWED_HOSTS adds names"
        raise PermissionDenied("HOST_NOT_ALLOWED", message, host=host)


@functools.lru_cache(256)
def _host(address: str) -> str:
    """`[::1]:80` → `::1`, `name:80` → `name`, in lower case."""
    try:
        return urlsplit(f"//{address}").hostname or ""
    except ValueError:
        return ""


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Exchange:
    """One request and its answer, watched."""

    def __init__(self, receive: Receive, send: Send, asked: Mapping[str, str], request_id: str, slot: Slot) -> None:
        self._receive = receive
        self._send = send
        self._request_id = request_id
        self._slot = slot
        self.body_left = "transfer-encoding" in asked or asked.get("content-length", "0") != "0"
        self._may_linger = asked.get("expect", "").lower() != "100-continue"
        self.started = False
        self.linger_seconds = _LINGER_STRANGER_SECONDS

    async def receive(self) -> Message:
        message = await self._receive()
        self._may_linger = True
        self._slot.hear()
        if message["type"] != "http.request" or not message.get("more_body", False):
            self.body_left = False
            self._slot.end_body()
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "websocket.accept":
            self.started = True
            own = (b"x-request-id", self._request_id.encode())
            message = {**message, "headers": [*message.get("headers", ()), own]}
        elif message["type"] in ("http.response.start", "websocket.http.response.start"):
            self.started = True
            message["headers"] = self._with_own(message["headers"])
        elif self.body_left and not message.get("more_body", False) and self._may_linger:
            await self._send({**message, "more_body": True})
            await self._linger()
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    def _with_own(self, given: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """Header names are in lower case, as ASGI has them."""
        said = dict(given)
        own = [header for header in _OWN_HEADERS if header[0] not in said]
        own.append((b"x-request-id", self._request_id.encode()))
        if self.body_left:
            own.append((b"connection", b"close"))
        return [*given, *own]

    async def _linger(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.linger_seconds):
                while self.body_left:
                    await self.receive()
