"""What a reward raises that cannot judge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from services.rewards import RewardSample

# Of a completion that an error quotes.
QUOTED_CHARACTERS = 120


class RewardError(Exception):
    """A reward that could not judge; the text names it and, where one sample is the cause, that sample.

    `index` counts the samples of the batch from 0. `reason` is a stable UPPER_SNAKE_CASE word.
    """

    def __init__(self, what: str, index: int | None = None, reason: str = "REWARD_FAILED", remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.index = index
        self.reason = reason
        self.remedy = remedy
        self.named = False

    def of(self, name: str, samples: Sequence[RewardSample]) -> RewardError:
        """The same error with the reward's name and the sample's beginning in its text."""
        if self.named:
            return self
        where = ""
        if self.index is not None and 0 <= self.index < len(samples):
            where = f", sample {self.index} ({samples[self.index].completion[:QUOTED_CHARACTERS]!r})"
        error = RewardError(f"reward {name!r}{where}: {self.what}", self.index, self.reason, self.remedy)
        error.named = True
        return error

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (self.what, self.index, self.reason, self.remedy, self.named)


def _rebuilt(what: str, index: int | None, reason: str, remedy: str, named: bool) -> RewardError:
    error = RewardError(what, index, reason, remedy)
    error.named = named
    return error
