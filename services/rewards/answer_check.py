"""Why the answers of a dataset can't be what a reward compares with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# The remedy for answers that end in a number.
NUMERIC = "use the reward numeric, which compares the last number: reward.name=numeric"
# Of the answers; a few odd ones are in any data set.
_TOLERATED_SHARE = 0.02
_QUOTED_CHARACTERS = 80


@dataclass(frozen=True)
class AnswerMismatch:
    """Why answers and reward do not fit, and the remedy."""

    message: str
    remedy: str


def too_many(odd: Sequence[str], answers: Sequence[str]) -> bool:
    """Whether those of `answers` that are `odd` are worth a word."""
    return len(odd) > _TOLERATED_SHARE * len(answers)


def quoted(answer: str) -> str:
    """An example of an answer: its end, where final answers stand."""
    return repr(answer if len(answer) <= _QUOTED_CHARACTERS else "…" + answer[-_QUOTED_CHARACTERS:])
