"""What is told of something that is away for long: at its begin, now and then while it lasts, and at its end."""

from __future__ import annotations

import logging
import time

TELL_AGAIN_SECONDS = 60.0


class OutageLog:
    """`failed` at each try that fails, `over` at each that does not; the log has one line a minute, not one a try."""

    def __init__(self, log: logging.Logger, what: str) -> None:
        """`what` says what is away and what that means, such as `NATS is away, events wait`."""
        self._log = log
        self._what = what
        self._since: float | None = None
        self._told = 0.0

    def failed(self, why: BaseException | str) -> None:
        now = time.monotonic()
        if self._since is None:
            self._since = now
        elif now - self._told < TELL_AGAIN_SECONDS:
            return
        self._told = now
        reason = why if isinstance(why, str) else str(why) or type(why).__name__
        self._log.warning("%s; for %.0f s: %s", self._what, now - self._since, reason)

    def over(self) -> None:
        if self._since is not None:
            self._log.warning("%s: over after %.0f s", self._what, time.monotonic() - self._since)
            self._since = None
