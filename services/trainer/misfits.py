"""Why the answers of a dataset can't be what a reward compares with."""

from __future__ import annotations

from dataclasses import dataclass

# The remedy for answers that end in a number.
NUMERIC = "use the reward numeric, which compares the last number: reward.name=numeric"
_QUOTED_CHARACTERS = 80


@dataclass(frozen=True)
class Misfit:
    """What is odd, and what to do about it."""

    message: str
    remedy: str


def quoted(answer: str) -> str:
    """An example of an answer: its end, where final answers stand."""
    return repr(answer if len(answer) <= _QUOTED_CHARACTERS else "…" + answer[-_QUOTED_CHARACTERS:])
