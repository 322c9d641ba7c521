"""Shaping by length: what a long completion costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from services.mesh.errors import Violation
from services.mesh.validation.params import STRICT_FIELDS
from services.mesh.validation.partial import collect_violations
from services.rewards import RewardSample, Rule, Score, rewards
from services.scoring import shaping


@dataclass(frozen=True)
class LengthParams:
    longest: Annotated[
        int, Field(ge=1, le=10_000_000, description="units; a completion of so many, or more, is worth `low`")
    ]
    shape: Annotated[
        Literal["linear", "cosine", "soft_overlong"],
        Field(description="how the score falls from free to longest; soft_overlong is linear from 0 to -1"),
    ] = "soft_overlong"
    free: Annotated[int, Field(ge=0, le=10_000_000, description="units that cost nothing; less than longest")] = 0
    shortest: Annotated[
        int, Field(ge=0, le=10_000_000, description="units; a shorter completion is worth `low` too; at most free")
    ] = 0
    high: Annotated[float, Field(ge=-1000, le=1000, description="up to free; not for soft_overlong")] = 1.0
    low: Annotated[float, Field(ge=-1000, le=1000, description="from longest on; not for soft_overlong")] = 0.0
    unit: Annotated[shaping.Unit, Field(description="characters, or words, which are what white space parts")] = (
        "characters"
    )
    __pydantic_config__ = STRICT_FIELDS

    def rules(self) -> list[Violation]:
        return collect_violations(self._check_shortest, self._check_free, self._check_low)

    def _check_shortest(self) -> list[Violation]:
        return [] if self.shortest <= self.free else [Violation("shortest", f"must be at most free ({self.free})")]

    def _check_free(self) -> list[Violation]:
        return [] if self.free < self.longest else [Violation("free", f"must be less than longest ({self.longest})")]

    def _check_low(self) -> list[Violation]:
        if self.shape == "soft_overlong" or self.low < self.high:
            return []
        return [Violation("low", f"must be less than high ({self.high:g})")]


@rewards.register("length")
class Length(Rule):
    """Falls with the length of the completion, from one value to a lower one; for `weighted`, beside a goal.

    With L the length and t = clip((L − free) / (longest − free), 0, 1): linear high + (low − high)·t; cosine
    low + (high − low)·(1 + cos πt)/2 (Yeo et al. 2025, arXiv:2502.03373); soft_overlong −t, DAPO's overlong punishment
    (arXiv:2503.14476, eq. 13, with free = L_max − L_cache). Below `shortest` it is `low`. Parts: `length`, in units;
    `over`, 1 where L ≥ longest.

    A reward sees text: the limit in tokens is `max_response_length`, and `rollout/truncated_fraction` shows who met it.
    Alone it teaches silence.
    """

    Params = LengthParams

    @staticmethod
    def score(samples: Sequence[RewardSample], params: LengthParams) -> list[Score]:
        return [_score(shaping.length(sample.completion, params.unit), params) for sample in samples]


def _score(size: int, params: LengthParams) -> Score:
    high, low, fall = params.high, params.low, "cosine" if params.shape == "cosine" else "linear"
    if params.shape == "soft_overlong":
        high, low = 0.0, -1.0
    value = shaping.falling(size, params.free, params.longest, high, low, fall)
    if size < params.shortest:
        value = low
    return Score(value, {"length": float(size), "over": float(size >= params.longest)})
