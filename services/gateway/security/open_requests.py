"""How many requests are open, and of which clients the bodies are still to come."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Iterator

from services.gateway.streams.server_stream import OpenStreams
from services.mesh.errors import Unavailable

# Of the open requests, those of one client whose bodies have not ended: no more than one in so many.
_SHARE = 4


class Slots:
    """`limit` requests at a time, streams apart. Of one client's bodies that are still to come, a share of them: one
    more ends the one that has been silent the longest. So bodies that never end shut nobody out, not even others at
    the same address."""

    def __init__(self, limit: int, streams: OpenStreams) -> None:
        self._limit = limit
        self._bodies_limit = max(limit // _SHARE, 1)
        self._streams = streams
        self._open = 0
        # By client; the one that has been silent the longest comes first.
        self._sending: defaultdict[str, dict[Slot, None]] = defaultdict(dict)

    def take(self, client: str) -> Slot:
        """The place of one request, to be left; whether there is room for it is for `check` to say."""
        self._open += 1
        return Slot(self, client)

    def check(self) -> None:
        """Raises Unavailable where more are open than may be."""
        if self._open - self._streams.count > self._limit:
            raise Unavailable("TOO_MANY_REQUESTS", f"{self._limit} requests are open already", limit=self._limit)

    def begin_body(self, slot: Slot) -> None:
        sending = self._sending[slot.client]
        if len(sending) >= self._bodies_limit:
            silent = next(iter(sending))
            self.end_body(silent)
            silent.evict(self._bodies_limit)
        self._sending[slot.client][slot] = None

    def hear(self, slot: Slot) -> None:
        """Some of the body has come."""
        sending = self._sending.get(slot.client, {})
        if slot in sending:
            del sending[slot]
            sending[slot] = None

    def end_body(self, slot: Slot) -> None:
        if slot.client in self._sending:
            self._sending[slot.client].pop(slot, None)
            if not self._sending[slot.client]:
                del self._sending[slot.client]

    def give_back(self) -> None:
        self._open -= 1


class Slot:
    """The place of one request."""

    def __init__(self, slots: Slots, client: str) -> None:
        self.client = client
        self._slots = slots
        self._is_held = True
        self._task: asyncio.Task[object] | None = None
        self._evicted: Unavailable | None = None

    @contextlib.contextmanager
    def sending(self, body_left: bool) -> Iterator[None]:
        """For as long as a body may come. Raises Unavailable where it has to give way to another's."""
        if not body_left:
            yield
            return
        self._task = asyncio.current_task()
        self._slots.begin_body(self)
        try:
            yield
        except asyncio.CancelledError:
            if self._evicted is None or self._task is None:
                raise
            self._task.uncancel()
            raise self._evicted from None
        finally:
            self.end_body()

    def evict(self, limit: int) -> None:
        message = (
            f"{limit} requests from {self.client} were sending their bodies, and of this one nothing came for longest"
        )
        self._evicted = Unavailable("TOO_MANY_BODIES", message, limit=limit)
        if self._task is not None:
            self._task.cancel()

    def hear(self) -> None:
        self._slots.hear(self)

    def end_body(self) -> None:
        """The body is there, or nobody wants it any more."""
        self._slots.end_body(self)

    def leave(self) -> None:
        """May be called again."""
        if self._is_held:
            self._is_held = False
            self._slots.give_back()
