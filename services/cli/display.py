"""Values as people read them: sizes, times, numbers. Pure functions of their arguments."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b[@-_]|[\x00-\x08\x0b-\x1f\x7f]")
_BLOCKS = "▁▂▃▄▅▆▇█"


def size(count: float) -> str:
    """Bytes in decimal units: `1.5 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def parameters(count: int) -> str:
    """A number of weights: `164k`, `134.5M`."""
    for unit, divisor in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= divisor:
            return f"{count / divisor:.3g}{unit}"
    return str(count) if count else ""


def duration(seconds: float) -> str:
    """`12 s`, `2:05`, `1:02:05`."""
    if not math.isfinite(seconds):
        return "?"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def number(value: float) -> str:
    """Four significant digits; whole numbers whole."""
    if not math.isfinite(value):
        return {math.inf: "∞", -math.inf: "-∞"}.get(value, "NaN")
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.4g}"


def exact(value: float) -> str:
    """Every digit, so that it can be given back; whole numbers whole (a protobuf Struct knows only doubles)."""
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)


def score(value: float) -> str:
    """A score, most often a share: three decimals, so that a column of them can be compared."""
    return f"{value:.3f}" if math.isfinite(value) and abs(value) < 1000 else number(value)


def is_set(timestamp: Timestamp) -> bool:
    return bool(timestamp.seconds or timestamp.nanos)


def seconds(timestamp: Timestamp) -> float:
    return timestamp.seconds + timestamp.nanos / 1e9


def moment(timestamp: Timestamp) -> str:
    """Local date and time; empty where there is none."""
    if not is_set(timestamp):
        return ""
    return datetime.fromtimestamp(seconds(timestamp), UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def age(timestamp: Timestamp, now: float | None = None) -> str:
    """`now`, `5 min`, `3 h`, `12 d`: how long ago; empty where there is no time."""
    if not is_set(timestamp):
        return ""
    passed = (time.time() if now is None else now) - seconds(timestamp)
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if passed >= length:
            return f"{int(passed // length)} {unit} ago"
    return "now" if passed < 5 else f"{int(passed)} s ago"


def took(start: Timestamp, end: Timestamp, now: float | None = None) -> str:
    """How long something took or has been taking; empty before it started."""
    if not is_set(start):
        return ""
    until = seconds(end) if is_set(end) else (time.time() if now is None else now)
    return duration(until - seconds(start))


def clean(text: str) -> str:
    """Without control sequences: what a training process prints must not move the reader's cursor."""
    return _CONTROL.sub("", text.expandtabs(4))


def one_line(text: str, width: int = 0) -> str:
    """`text` on one line, its line breaks shown as ⏎, and cut in the middle where it is longer than `width`."""
    line = clean(text.replace("\r\n", "\n").replace("\n", "⏎"))
    if width <= 3 or len(line) <= width:
        return line
    head = (width - 1) // 2
    return f"{line[:head]}…{line[len(line) - (width - 1 - head) :]}"


def sparkline(values: Sequence[float], width: int = 20) -> str:
    """The course of a series in `width` characters; empty for fewer than two finite values."""
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < 2:
        return ""
    count = min(width, len(finite))
    means = [_mean(finite[i * len(finite) // count : (i + 1) * len(finite) // count]) for i in range(count)]
    low, high = min(means), max(means)
    span = (high - low) or 1.0
    return "".join(_BLOCKS[min(7, int((mean - low) / span * 8))] for mean in means)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def counted(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


def labels(pairs: dict[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(pairs.items()))
