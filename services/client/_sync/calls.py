"""How calls are made: with a deadline, again where that is safe, and streams from their cursor on."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from typing import Any, TypeVar

from google.protobuf.message import Message

from services.client._sync.connection import Connection
from services.client.backoff import CALL_PATIENCE_SECONDS, Backoff, is_connection_lost
from services.client.sync import sleep
from services.mesh.errors import DeadlineExceeded, PlatformError, Unavailable
from services.mesh.rpc.client import is_repeatable

R = TypeVar("R", bound=Message)
T = TypeVar("T")

MAX_PAGE_SIZE = 1000


class Calls:
    """One service of the contract, called through a connection. Methods bear the names of its RPCs."""

    def __init__(self, connection: Connection, service: str, timeout_seconds: float) -> None:
        self.connection = connection
        self._service = service
        self._timeout_seconds = timeout_seconds

    def call(self, rpc: str, request: Message, reply: type[R]) -> R:
        """A unary call, made again while the mesh is away where a second time does no harm.

        Raises DeadlineExceeded after the timeout, tries and pauses included.
        """
        method, deadline = self._path(rpc), time.monotonic() + self._timeout_seconds
        backoff = Backoff(CALL_PATIENCE_SECONDS)
        while True:
            left = max(0.0, deadline - time.monotonic())
            try:
                return self.connection.transport().unary(method, request, reply, left)
            except Unavailable as error:
                pause = backoff.next() if is_repeatable(method, request) and error.reason != "MESH_NOT_UP" else None
                if pause is None or time.monotonic() + pause > deadline:
                    raise
            sleep(pause)
            self.connection.look_again()

    def pages(
        self, rpc: str, request: Any, reply: type[R], items: Callable[[R], Iterable[T]], limit: int
    ) -> Generator[T, None]:
        """The items of a paged list, at most `limit` (0 takes all), fetched as they are asked for."""
        left = limit
        while True:
            request.page_size = min(left, MAX_PAGE_SIZE) if limit else MAX_PAGE_SIZE
            answer: Any = self.call(rpc, request, reply)
            for item in items(answer):
                yield item
                left -= 1
                if limit and not left:
                    return
            request.page_token = answer.next_page_token
            if not request.page_token:
                return

    def resume(
        self, rpc: str, request: Callable[[], Message], reply: type[R], deadline: float | None = None
    ) -> Generator[R, None]:
        """The replies of a server stream, opened again whenever the connection breaks; `request` makes the request from
        where the reader has got to. `deadline` is on the monotonic clock.

        Raises Unavailable after the client's patience without an answer, DeadlineExceeded at the deadline, and every
        error that is not the connection's at once.
        """
        backoff = self.backoff()
        while True:
            try:
                left = _left(deadline)
                opened = self.connection.transport().stream(self._path(rpc), request(), reply, left)
                with closing(opened) as replies:
                    for message in replies:
                        self.connection.answered()
                        backoff.reset()
                        yield message
                return
            except PlatformError as error:
                _left(deadline)
                self.recover(backoff, error)

    def write(self, rpc: str, requests: Iterator[Message], reply: type[R]) -> R:
        """A client stream, once."""
        return self.connection.transport().write(self._path(rpc), requests, reply)

    def backoff(self) -> Backoff:
        """For what is tried again as long as the client is patient."""
        return Backoff(self.connection.patience_seconds)

    def recover(self, backoff: Backoff, error: PlatformError) -> None:
        """Wait before the next try. Raises `error` where another try can't help."""
        pause = backoff.next() if is_connection_lost(error) else None
        if pause is None:
            raise error
        self.connection.tell_lost()
        sleep(pause)
        self.connection.look_again()

    def _path(self, rpc: str) -> str:
        return f"/{self._service}/{rpc}"


def _left(deadline: float | None) -> float | None:
    """Seconds. Raises DeadlineExceeded."""
    if deadline is None:
        return None
    left = deadline - time.monotonic()
    if left <= 0:
        raise DeadlineExceeded("WAITED_TOO_LONG", "it has not come to an end in the time that was given")
    return left
