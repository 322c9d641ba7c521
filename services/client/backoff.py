"""When a call is made again: after what, how often, and how long apart."""

from __future__ import annotations

import random

from services.mesh.errors import PlatformError

# Of a unary call: pauses of 0.1, 0.2, 0.4, 0.8 and 1.6 s at most, time for a service to come back.
CALL_PATIENCE_SECONDS = 3.0
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.1, 5.0


class Backoff:
    """Pauses that double up to 5 s, each shortened at random by up to half, so that callers who were cut off together
    do not come back together; none once `patience_seconds` have been waited without an answer."""

    def __init__(self, patience_seconds: float) -> None:
        self._patience_seconds = patience_seconds
        self.reset()

    def reset(self) -> None:
        """An answer has come."""
        self._pause, self._waited = _FIRST_PAUSE_SECONDS, 0.0

    def next(self) -> float | None:
        """Seconds to wait before the next try; None to give up."""
        if self._waited >= self._patience_seconds:
            return None
        self._waited += self._pause
        pause = self._pause * (1 - random.random() / 2)  # noqa: S311 - not a secret
        self._pause = min(self._pause * 2, _LONGEST_PAUSE_SECONDS)
        return pause


def is_connection_lost(error: PlatformError) -> bool:
    """Whether the connection failed, not the call: our servers give a reason, the transport repeats its code."""
    return error.code == "UNAVAILABLE" or error.reason in ("DEADLINE_EXCEEDED", "CANCELLED", "UNKNOWN")
