"""The form of a completion, and an answer inside that form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from services.mesh.validation.params import STRICT_FIELDS
from services.rewards import RewardSample, Rule, Score, rewards
from services.rewards.answer_check import AnswerMismatch, quoted, too_many
from services.scoring import regex
from services.scoring.exact import same
from services.scoring.text import Spelling

ANSWER_GROUP = "answer"


def _compiles(pattern: str) -> str:
    """The pattern itself. Raises ValueError, which becomes a violation of this field, where it is not RE2."""
    for ignore_case in (False, True):  # a pattern that ignores case compiles to a larger program
        regex.compile_pattern(pattern, ignore_case)
    return pattern


@dataclass(frozen=True)
class RegexParams:
    pattern: Annotated[
        str,
        AfterValidator(_compiles),
        Field(min_length=1, max_length=regex.LONGEST_PATTERN, description="RE2; (?P<answer>…) marks the answer"),
    ]
    mode: Annotated[regex.Mode, Field(description="search: the pattern occurs; fullmatch: it is the whole text")] = (
        "fullmatch"
    )
    ignore_case: Annotated[bool, Field(description="upper and lower case are the same")] = False
    __pydantic_config__ = STRICT_FIELDS


@rewards.register("regex")
class Regex(Rule):
    """1 where the completion matches a pattern (and its group `answer`, if it has one, equals the answer), else 0.

    Without a group `(?P<answer>…)`: score = format. With it: score = correct, which needs the form too. Parts:
    `format`, and `correct` where the pattern has the group.

    RE2 (https://github.com/google/re2/wiki/Syntax): linear time on any pattern and text, so no look-around and no
    back-references; `.` matches line breaks. Completions over 64 KiB do not match. A pattern without the group rewards
    form alone, which a model learns to produce empty: use it for a format, not as the only goal.
    """

    Params = RegexParams

    @staticmethod
    def needs_answer(params: RegexParams) -> bool:
        return ANSWER_GROUP in regex.compile_pattern(params.pattern, False).groupindex

    @staticmethod
    def misfit(params: RegexParams, answers: Sequence[str]) -> AnswerMismatch | None:
        group = regex.group_pattern(params.pattern, ANSWER_GROUP)
        if group is None:
            return None
        pattern = regex.compile_pattern(group, params.ignore_case)
        unheard = [answer for answer in answers if regex.match(pattern, answer.strip(), "fullmatch") is None]
        if not too_many(unheard, answers):
            return None
        message = f"{len(unheard)} of {len(answers)} answers ({quoted(unheard[0])}) are none that the group can match"
        return AnswerMismatch(message, f"widen (?P<{ANSWER_GROUP}>{group}), or keep in `answer` what it is to match")

    @staticmethod
    def score(samples: Sequence[RewardSample], params: RegexParams) -> list[Score]:
        pattern = regex.compile_pattern(params.pattern, params.ignore_case)
        return [_score(sample, params, pattern) for sample in samples]


def _score(sample: RewardSample, params: RegexParams, pattern: Any) -> Score:
    groups = regex.match(pattern, sample.completion.strip(), params.mode)
    form = float(groups is not None)
    if ANSWER_GROUP not in pattern.groupindex:
        return Score(form, {"format": form})
    spelling = Spelling(case=params.ignore_case)
    right = groups is not None and sample.answer is not None and same(groups[ANSWER_GROUP], sample.answer, spelling)
    return Score(float(right), {"format": form, "correct": float(right)})
