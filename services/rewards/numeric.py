"""Answers that are one number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from services.mesh.validation.params import STRICT_FIELDS
from services.rewards import RewardSample, Rule, Score, rewards
from services.rewards.answer_check import AnswerMismatch, quoted, too_many
from services.scoring import numeric
from services.scoring.text import Place, locate


@dataclass(frozen=True)
class NumericParams:
    look_in: Annotated[
        Place,
        Field(description="where the number stands: the whole text, its last line, after a marker, in \\boxed{}"),
    ] = "whole"
    marker: Annotated[
        str, Field(min_length=1, max_length=200, description="the text before the number, for after_marker")
    ] = "Answer:"
    which: Annotated[
        numeric.Which, Field(description="which number counts; with `only`, a second number is a wrong answer")
    ] = "last"
    absolute_tolerance: Annotated[float, Field(ge=0, description="largest difference that counts as equal")] = 0.0
    relative_tolerance: Annotated[float, Field(ge=0, lt=1, description="the same, as a share of the answer's size")] = (
        1e-9
    )
    percent: Annotated[numeric.Percent, Field(description="divide: 50% is 0.5; ignore: 50% is 50")] = "divide"
    __pydantic_config__ = STRICT_FIELDS


@rewards.register("numeric")
class Numeric(Rule):
    """1 where the completion's number equals the answer's number within a tolerance, else 0.

    score = [ |x − a| ≤ max(absolute_tolerance, relative_tolerance · |a|) ], x from the completion, a the last number of
    the answer (so that GSM8K's "… #### 72" can stay as it is). Parts: `correct`; `parsed`, 1 where a number was found.

    1,234.5 · 1.5e-3 · 3/4 · \\frac{3}{4} · 50% are numbers; "3,5" is two. Not for algebra or sets: use `math`.
    """

    Params = NumericParams

    @staticmethod
    def needs_answer(params: NumericParams) -> bool:
        return True

    @staticmethod
    def misfit(params: NumericParams, answers: Sequence[str]) -> AnswerMismatch | None:
        without = [answer for answer in answers if numeric.find(answer) is None]
        if not too_many(without, answers):
            return None
        message = (
            f"{len(without)} of {len(answers)} answers hold no number ({quoted(without[0])}) and are never matched"
        )
        return AnswerMismatch(message, "use exact or math, or leave those rows out")

    @staticmethod
    def score(samples: Sequence[RewardSample], params: NumericParams) -> list[Score]:
        return [_score(sample, params) for sample in samples]


def _score(sample: RewardSample, params: NumericParams) -> Score:
    said = numeric.find(locate(sample.completion, params.look_in, params.marker) or "", params.which)
    expected = numeric.find(sample.answer or "")
    correct = 0.0
    if said is not None and expected is not None:
        values = said.reading(params.percent), expected.reading(params.percent)
        correct = float(numeric.close(*values, params.absolute_tolerance, params.relative_tolerance))
    return Score(correct, {"correct": correct, "parsed": float(said is not None)})
