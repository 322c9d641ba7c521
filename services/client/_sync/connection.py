"""The channel of a client, made when it is first needed, and again where the mesh has moved."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

from services.client.endpoint import Endpoint, Where
from services.client.sync import Transport
from services.mesh.errors import PlatformError


class Connection:
    """Shared by all calls of a client. `on_lost` is told once for each time that the connection breaks."""

    def __init__(self, where: Where, patience_seconds: float, on_lost: Callable[[str], None]) -> None:
        self._where = where
        self.patience_seconds = patience_seconds
        self._on_lost = on_lost
        self._lost = False
        self._lock = threading.Lock()
        # The last one is in use; calls on the others come to their end.
        self._transports: list[Transport] = []

    def transport(self) -> Transport:
        """Raises Unavailable where no mesh is up, Unauthenticated without a token."""
        with self._lock:
            if not self._transports:
                self._transports.append(Transport(self._where.find()))
            return self._transports[-1]

    @property
    def endpoint(self) -> Endpoint:
        """Where calls go. Raises as `transport`."""
        return self.transport().endpoint

    def tell_lost(self) -> None:
        if not self._lost:
            self._lost = True
            self._on_lost("the connection is lost; trying again")

    def answered(self) -> None:
        self._lost = False

    def look_again(self) -> None:
        """Find out where the mesh is now: one that was started again has new ports."""
        with contextlib.suppress(PlatformError), self._lock:  # it may be on its way up: the next call tells
            found = self._where.find()
            if not self._transports or found != self._transports[-1].endpoint:
                self._transports.append(Transport(found))

    def close(self) -> None:
        with self._lock:
            transports, self._transports = self._transports, []
        for transport in transports:
            transport.close()
