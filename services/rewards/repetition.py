"""Shaping by repetition: what saying the same again costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from services.mesh.validation.params import STRICT_FIELDS
from services.rewards import RewardSample, Rule, Score, rewards
from services.scoring import shaping


@dataclass(frozen=True)
class RepetitionParams:
    size: Annotated[int, Field(ge=1, le=100, description="n of the n-grams")] = 4
    penalty: Annotated[float, Field(gt=0, le=1000, description="taken off when every n-gram has been said before")] = (
        1.0
    )
    free_share: Annotated[
        float, Field(ge=0, lt=1, description="share of n-grams that may be repeated without a penalty")
    ] = 0.0
    unit: Annotated[
        shaping.Unit, Field(description="of n-grams; characters for languages that put no spaces between words")
    ] = "words"
    __pydantic_config__ = STRICT_FIELDS


@rewards.register("repetition")
class Repetition(Rule):
    """0 where no n-gram of the completion occurs twice, down to −penalty where it says one thing over and over.

    With s = 1 − (distinct n-grams) / (n-grams): score = −penalty · max(0, s − free_share) / (1 − free_share). Part:
    `repeated`, s. Case does not count; a completion shorter than one n-gram repeats nothing. The penalty of Yeo et al.
    2025 (arXiv:2502.03373, appendix), on whole completions.

    Not for texts whose form repeats (tables, code, lists) without a generous `free_share`. For `weighted`, beside
    a goal.
    """

    Params = RepetitionParams

    @staticmethod
    def score(samples: Sequence[RewardSample], params: RepetitionParams) -> list[Score]:
        return [
            _score(shaping.repeated_share(sample.completion, params.size, params.unit), params) for sample in samples
        ]


def _score(share: float, params: RepetitionParams) -> Score:
    beyond = max(0.0, share - params.free_share) / (1 - params.free_share)
    return Score(-params.penalty * beyond, {"repeated": share})
