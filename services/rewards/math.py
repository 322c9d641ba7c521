"""Answers that are mathematics: expressions, sets, intervals, equations, matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from services.mesh.validation.params import STRICT_FIELDS
from services.rewards import RewardSample, Rule, Score, rewards
from services.rewards.answer_check import NUMERIC, AnswerMismatch, quoted, too_many
from services.scoring import math
from services.scoring.text import Place, locate


@dataclass(frozen=True)
class MathParams:
    look_in: Annotated[
        Place,
        Field(description="where the answer stands: the whole text, its last line, after a marker, in \\boxed{}"),
    ] = "whole"
    marker: Annotated[
        str, Field(min_length=1, max_length=200, description="the text before the answer, for after_marker")
    ] = "Answer:"
    cpu_seconds: Annotated[
        float, Field(ge=0.1, le=60, description="CPU time after which one comparison counts as wrong")
    ] = 2.0
    __pydantic_config__ = STRICT_FIELDS


@rewards.register("math")
class Math(Rule):
    """1 where the completion's answer is mathematically equal to the reference, else 0.

    score = correct, decided by math-verify 0.9.0 (https://github.com/huggingface/Math-Verify): LaTeX or plain
    expressions, 1/2 = 0.5 = \\frac{1}{2}, sets in any order. In a completion LaTeX must stand in \\boxed{} or $…$; the
    reference may be bare. Parts: `correct`; `parsed`, 1 where an expression was found; `cut`, 1 where the comparison
    ran out of CPU time or memory, which scores 0.

    A few milliseconds a sample, where `numeric` takes microseconds: use that one when every answer is a number.
    """

    Params = MathParams

    @staticmethod
    def needs_answer(params: MathParams) -> bool:
        return True

    @staticmethod
    def misfit(params: MathParams, answers: Sequence[str]) -> AnswerMismatch | None:
        written = [answer for answer in answers if "####" in answer]
        if not too_many(written, answers):
            return None
        message = f"{len(written)} of {len(answers)} answers are solutions that end in '#### …' ({quoted(written[0])})"
        return AnswerMismatch(message, NUMERIC)

    @staticmethod
    def score(samples: Sequence[RewardSample], params: MathParams) -> list[Score]:
        return [_score(sample, params) for sample in samples]


def _score(sample: RewardSample, params: MathParams) -> Score:
    said = locate(sample.completion, params.look_in, params.marker)
    verdict = math.Verdict(correct=False, parsed=False)
    if said and sample.answer:
        candidate = math.delimited(said) if params.look_in == "boxed" else said
        verdict = math.verify(candidate, math.delimited(sample.answer), params.cpu_seconds)
    parts = {"correct": float(verdict.correct), "parsed": float(verdict.parsed), "cut": float(verdict.cut)}
    return Score(parts["correct"], parts)
