"""Logs of a process: one JSON object a line on stderr, with the time, the level, the trace and whatever `extra` holds.

Three loggers have a meaning of their own: `access` (one line for each HTTP request), `audit` (who did what to which
resource) and whatever else tells what a process does.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from datetime import UTC, datetime

import msgspec

from services.mesh.telemetry import tracing

# Above every level that a setting or `logging.disable` may ask for: what was done is not a matter of verbosity.
AUDIT = 100
_STANDARD = frozenset(logging.LogRecord("", 0, "", 0, "", (), None).__dict__) | {"message", "taskName"}
# An exporter whose collector is away says so at each try; once in a while is enough.
_NOISY = ("opentelemetry.",)
_QUIET_SECONDS = 300.0
# Several times as fast as json: the access log is written for every call.
_encoder = msgspec.json.Encoder(enc_hook=str)
_audit = logging.getLogger("audit")
logging.addLevelName(AUDIT, "AUDIT")


class JsonFormatter(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "process": self._process,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (ids := tracing.ids()) is not None:
            entry["trace_id"], entry["span_id"] = ids
        entry |= {key: value for key, value in record.__dict__.items() if key not in _STANDARD}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        try:
            return _encoder.encode(entry).decode()
        except (TypeError, UnicodeEncodeError):
            # A key that is no string, or half a surrogate pair.
            return json.dumps(entry, default=str)


class RateLimitFilter(logging.Filter):
    """Lets each kind of line of a noisy library through once in a while, and counts the others."""

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[tuple[str, str], float] = {}
        self._left_out: dict[tuple[str, str], int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.name.startswith(_NOISY):
            return True
        kind, now = (record.name, str(record.msg)), time.monotonic()
        if now - self._said.get(kind, -_QUIET_SECONDS) < _QUIET_SECONDS:
            self._left_out[kind] = self._left_out.get(kind, 0) + 1
            return False
        self._said[kind] = now
        if left_out := self._left_out.pop(kind, 0):
            record.left_out = left_out
        return True


def configure_logging(process: str, level: int = logging.INFO) -> None:
    """Send every logger of this process to stderr as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(process))
    handler.addFilter(RateLimitFilter())
    logging.basicConfig(level=level, handlers=[handler], force=True)


def audit(principal: str, verb: str, resource: str, result: str, **more: str) -> None:
    """Write down that `principal` (empty: nobody who could be named) did `verb` to `resource`.

    `result` is `OK` or the code that the call ended with. Goes out whatever the level of the log is.
    """
    fields = {"principal": principal, "verb": verb, "resource": resource, "result": result, **more}
    _audit.log(AUDIT, "%s %s %s: %s", principal or "nobody", verb, resource or "-", result, extra=fields)
