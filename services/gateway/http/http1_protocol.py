"""One HTTP connection: uvicorn's on llhttp, with limits on the size and the time of a request's head, errors as
elsewhere, and nothing let through that two readers could take for different requests (RFC 9112, 11.2).

llhttp refuses what is ambiguous in lengths, chunks, folded lines and stray bytes; what it lets pass is checked here.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from services.gateway.http.problems import HttpError, problem
from services.mesh.errors import DeadlineExceeded, InvalidArgument, ResourceExhausted, Violation

MAX_HEAD_BYTES = 32 * 1024
HEAD_SECONDS = 15.0
# What the `state` of a request's scope holds of its connection.
TRANSPORT = "rlhf.transport"
_LINE_END_BYTES = 4


class Connection(HttpToolsProtocol):
    """A head that takes longer than HEAD_SECONDS is answered 408, one that is too large 431, a broken one 400.

    Clients may send the next request before the answer; one that is broken ends the connection after the answers that
    are due before it.
    """

    _head_timer: asyncio.TimerHandle | None = None
    # A request line has begun and its headers have not ended.
    _in_head = False
    # Of the head, as far as it is parsed; then of the trailers.
    _head_bytes = 0
    # Received since anything of use was parsed: an endless header, trailer or chunk extension grows here.
    _unparsed_bytes = 0
    # No more is read.
    _is_refused = False
    _running: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self.app_state = {**self.app_state, TRANSPORT: transport}
        self._await_head()

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        self._unset_keepalive_if_required()
        self._unparsed_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._upgrade(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError as error:
            raised = error.__context__ if isinstance(error, httptools.HttpParserCallbackError) else error
            self._refuse(raised if isinstance(raised, HttpError) else malformed(str(raised)))
            return
        if self._unparsed_bytes > MAX_HEAD_BYTES:
            self._refuse(too_large())
        elif self._head_timer is None and (self._in_head or not self._is_answering()):
            # Outside a head these were line ends, which may stand before one.
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_came()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = self._unparsed_bytes = 0

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + _LINE_END_BYTES)
        # Trailers are thrown away: added to the headers they would come after the checks.
        if self._in_head:
            super().on_header(name, value.rstrip(b" \t"))

    def on_headers_complete(self) -> None:
        self._check_head()
        self._in_head = False
        self._unparsed_bytes = 0
        self._head_came()
        if not self._is_read_again():
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unparsed_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unparsed_bytes = 0
        if not self._is_read_again():
            super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            raise too_large()

    def _check_head(self) -> None:
        """What llhttp lets pass. Raises HttpError."""
        version, names = self.parser.get_http_version(), [name for name, _ in self.headers]
        if version not in ("1.1", "1.0"):
            raise malformed(f"version {version} is not spoken here")
        if names.count(b"host") != 1 and (version == "1.1" or b"host" in names):
            raise malformed("a request has one Host header")
        if b"transfer-encoding" in names:
            codings = [value.lower() for name, value in self.headers if name == b"transfer-encoding"]
            if version == "1.0" or codings != [b"chunked"]:
                raise malformed("the only Transfer-Encoding is chunked, in HTTP/1.1")
        if self.parser.get_method() == b"CONNECT":
            raise malformed("this is not a proxy")

    def _is_read_again(self) -> bool:
        """To another protocol than WebSocket nobody changes here. As llhttp takes what follows such an offer for the
        other protocol, the request is read again without it."""
        return self.parser.should_upgrade() and not self._should_upgrade()

    def _upgrade(self, rest: bytes) -> None:
        """`rest` came after the head."""
        if self._is_answering():
            self._refuse(malformed("a connection changes its protocol after the answers that are due"))
        elif self._should_upgrade():
            self.handle_websocket_upgrade()
        else:
            line = b"%s %s HTTP/1.1\r\n" % (self.parser.get_method(), self.url)
            kept = (b"%s: %s\r\n" % header for header in self.headers if header[0] != b"upgrade")
            self.parser = httptools.HttpRequestParser(self)
            self.data_received(b"".join([line, *kept, b"\r\n", rest]))

    def _is_answering(self) -> bool:
        return self._running is not None and not self._running.response_complete

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._head_late)

    def _head_came(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_late(self) -> None:
        self._head_timer = None
        if self.transport.is_closing():
            return
        if not self._in_head:
            # Nothing was asked.
            self.transport.close()
            return
        message = f"the headers did not arrive within {HEAD_SECONDS:g} s"
        self._refuse(HttpError(408, DeadlineExceeded("HEADERS_LATE", message)))

    def _refuse(self, error: HttpError) -> None:
        """Read no more; answer and close, after the answers that are due to earlier requests.

        Where the body of a request is what is refused, this is its answer; one that is under way is broken off.
        """
        self._is_refused = True
        self._head_came()
        if self.transport.is_closing():
            return
        due = [self._running] if self._running is not None and not self._running.response_complete else []
        due += [cycle for cycle, _ in reversed(self.pipeline)]
        is_under_way = False
        if due and due[-1].more_body:
            broken = due.pop()
            broken.disconnected = True
            broken.message_event.set()
            self.pipeline = deque(queued for queued in self.pipeline if queued[0] is not broken)
            is_under_way = broken.response_started
        if due:
            due[-1].keep_alive = False
            return
        if not is_under_way:
            self.transport.write(answer(error))
        self.transport.close()


def answer(error: HttpError) -> bytes:
    """The whole of an answer, after which the connection is closed."""
    request_id = str(uuid.uuid4())
    response = problem(error, request_id)
    own = [(b"connection", b"close"), (b"x-request-id", request_id.encode())]
    headers = [b"%s: %s\r\n" % header for header in (*response.raw_headers, *own)]
    return b"".join([STATUS_LINE[response.status_code], *headers, b"\r\n", bytes(response.body)])


def malformed(why: str) -> HttpError:
    return HttpError(400, InvalidArgument([Violation("", f"this is not HTTP/1.1: {why}")], "MALFORMED_HTTP"))


def too_large(limit_bytes: int = MAX_HEAD_BYTES, what: str = "the line and the headers of a request") -> HttpError:
    message = f"{what} are limited to {limit_bytes} bytes"
    return HttpError(431, ResourceExhausted("HEADERS_TOO_LARGE", message, limit_bytes=limit_bytes))
