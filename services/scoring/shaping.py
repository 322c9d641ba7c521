"""Length and repetition of a text, as numbers. Linear in its length."""

from __future__ import annotations

import math
import re
from typing import Literal

Unit = Literal["characters", "words"]
Fall = Literal["linear", "cosine"]

_WORD = re.compile(r"\S+")


def length(text: str, unit: Unit) -> int:
    """Code points, or runs of what is not white space."""
    return len(text) if unit == "characters" else sum(1 for _ in _WORD.finditer(text))


def falling(size: float, start: float, end: float, high: float, low: float, fall: Fall) -> float:
    """`high` up to `start`, `low` from `end` on, and between them a line or half a cosine."""
    share = min(1.0, max(0.0, (size - start) / (end - start)))
    if fall == "cosine":
        share = (1 - math.cos(math.pi * share)) / 2
    return high + (low - high) * share


def repeated_share(text: str, size: int, unit: Unit) -> float:
    """1 − distinct n-grams / n-grams, for n = `size`; 0 for a text shorter than that. Case does not count."""
    units = text.casefold().split() if unit == "words" else list(text.casefold())
    total = len(units) - size + 1
    if total < 1:
        return 0.0
    # Hashes in place of tuples: a long text of long n-grams would else take their product in memory.
    distinct = len({hash(tuple(units[at : at + size])) for at in range(total)})
    return 1 - distinct / total
