"""Answers that have to stand in tags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import AfterValidator, Field

from services.mesh.validation.params import STRICT_FIELDS
from services.rewards import RewardSample, Rule, Score, rewards
from services.scoring import tags

Tag = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,63}$")]


def _differ(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise ValueError("each tag may be named once")
    return names


@dataclass(frozen=True)
class FormatTagsParams:
    tags: Annotated[
        list[Tag],
        AfterValidator(_differ),
        Field(min_length=1, max_length=16, description="names of the tags, in the order they have to stand in"),
    ] = field(default_factory=lambda: ["think", "answer"])
    graded: Annotated[
        bool, Field(description="the mean of the parts, so that half a form is worth something; else all or nothing")
    ] = False
    __pydantic_config__ = STRICT_FIELDS


@rewards.register("format_tags")
class FormatTags(Rule):
    """1 where the completion is <think>…</think><answer>…</answer> (or other tags), each once, in order, and no more.

    score = [ once = order = clean = filled = 1 ], with `graded` the mean of the four. Parts: `once`, the share of tags
    that are opened once and closed once; `order`, 1 where they follow each other and none stands in another; `clean`, 1
    where besides nothing but white space is outside them; `filled`, the share of tags with something inside.

    The format reward of DeepSeek-R1 (arXiv:2501.12948). Form alone is no goal: add it to a reward for the answer with
    `weighted`, and let it weigh less.
    """

    Params = FormatTagsParams

    @staticmethod
    def score(samples: Sequence[RewardSample], params: FormatTagsParams) -> list[Score]:
        return [_score(tags.form(sample.completion, params.tags), params.graded) for sample in samples]


def _score(form: tags.Form, graded: bool) -> Score:
    parts = {"once": form.once, "order": form.order, "clean": form.clean, "filled": form.filled}
    return Score(sum(parts.values()) / len(parts) if graded else float(form.whole), parts)
