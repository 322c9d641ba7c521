"""The plainest rule: the completion says the answer and nothing else where the answer is looked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from services.mesh.validation.params import STRICT_FIELDS
from services.rewards import RewardSample, Rule, Score, rewards
from services.rewards.answer_check import NUMERIC, AnswerMismatch, quoted, too_many
from services.scoring import numeric
from services.scoring.exact import same
from services.scoring.text import Place, Spelling, locate


@dataclass(frozen=True)
class ExactParams:
    look_in: Annotated[
        Place,
        Field(description="where the answer stands: the whole text, its last line, after a marker, in \\boxed{}"),
    ] = "whole"
    marker: Annotated[
        str, Field(min_length=1, max_length=200, description="the text before the answer, for after_marker")
    ] = "Answer:"
    strip: Annotated[bool, Field(description="white space at both ends does not count")] = True
    ignore_case: Annotated[bool, Field(description="upper and lower case are the same")] = False
    ignore_spacing: Annotated[bool, Field(description="a run of white space is the same as one space")] = False
    unicode_forms: Annotated[bool, Field(description="compatibility forms are the same (NFKC)")] = False
    __pydantic_config__ = STRICT_FIELDS


@rewards.register("exact")
class Exact(Rule):
    """1 where the completion equals the answer as a string, else 0.

    score = correct. Parts: `correct`; `format`, 1 where the completion has the place that `look_in` names, so that a
    model which answers well in the wrong form can be told from one which answers badly.

    The outcome reward of Cobbe et al. 2021 (arXiv:2110.14168) and DeepSeek-R1 (arXiv:2501.12948). Not for answers with
    several right spellings: use `numeric` or `math`.
    """

    Params = ExactParams

    @staticmethod
    def needs_answer(params: ExactParams) -> bool:
        return True

    @staticmethod
    def misfit(params: ExactParams, answers: Sequence[str]) -> AnswerMismatch | None:
        return misfit(params, answers)

    @staticmethod
    def score(samples: Sequence[RewardSample], params: ExactParams) -> list[Score]:
        spelling = Spelling(params.unicode_forms, params.ignore_case, params.ignore_spacing, params.strip)
        return [_score(sample, params, spelling) for sample in samples]


# No final answer is longer.
_LONGEST_ANSWER = 200


def misfit(params: ExactParams, answers: Sequence[str]) -> AnswerMismatch | None:
    """Answers that no completion matches, or that are whole solutions, of which every word would have to be said."""
    spelling = Spelling(params.unicode_forms, params.ignore_case, params.ignore_spacing, params.strip)
    written = [answer for answer in answers if _is_written_out(answer)]
    if too_many(written, answers):
        message = (
            f"{len(written)} of {len(answers)} answers are whole solutions ({quoted(written[0])}), and exact wants"
            " every word of them"
        )
        numbers = all("####" in answer and numeric.find(answer.rpartition("####")[2]) for answer in written)
        return AnswerMismatch(message, NUMERIC if numbers else "keep the final answer alone in `answer`")
    unheard = [answer for answer in answers if not _score(_ideal(answer, params), params, spelling).score]
    if too_many(unheard, answers):
        where = {"last_line": "in the last line", "after_marker": f"after {params.marker!r}"}.get(
            params.look_in, "there"
        )
        message = f"{len(unheard)} of {len(answers)} answers ({quoted(unheard[0])}) are none that can stand {where}"
        return AnswerMismatch(message, "keep the final answer alone in `answer`, or set look_in to whole")
    padded = [answer for answer in answers if answer != answer.strip()]
    if not params.strip and too_many(padded, answers):
        message = f"{len(padded)} of {len(answers)} answers begin or end with white space, and strip is false"
        return AnswerMismatch(message, "set strip to true")
    return None


def _is_written_out(answer: str) -> bool:
    return "####" in answer or "\n" in answer.strip() or len(answer) > _LONGEST_ANSWER


def _ideal(answer: str, params: ExactParams) -> RewardSample:
    """The completion that gives the answer where it is looked for."""
    place = {"after_marker": f"{params.marker} {answer}", "boxed": f"\\boxed{{{answer}}}"}
    return RewardSample("", place.get(params.look_in, answer) if params.strip else answer, answer)


def _score(sample: RewardSample, params: ExactParams, spelling: Spelling) -> Score:
    said = locate(sample.completion, params.look_in, params.marker)
    correct = float(said is not None and sample.answer is not None and same(said, sample.answer, spelling))
    return Score(correct, {"correct": correct, "format": float(said is not None)})
