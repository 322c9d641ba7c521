"""Validation rows as questions with an expected answer, and answers as scores. Pure: no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from services import rewards
from services.rewards.spec import RewardSpec


@dataclass(frozen=True)
class Question:
    """`row_index` is the line of the file; `expected` is None where the row has no answer to compare with."""

    row_index: int
    messages: tuple[dict[str, str], ...]
    expected: str | None
    metadata: dict[str, Any] = field(default_factory=dict)
    # Of a row of format prompt: its answer is there to be compared with, that of a conversation only to be read.
    is_prompt: bool = True


def read_questions(path: Path, rows: int) -> list[Question]:
    """The first `rows` canonical rows, of format prompt, messages or preference. The last turn of a conversation is the
    expected answer where it is the assistant's, and so is that of the better side of a pair.
    """
    with path.open("rb") as file:
        return [question_of(index, msgspec.json.decode(line)) for index, line in enumerate(islice(file, rows))]


def question_of(index: int, row: dict[str, Any]) -> Question:
    """Raises ValueError for a row of another format."""
    metadata = row.get("metadata") or {}
    if "chosen" in row:
        return Question(index, tuple(row["prompt"]), row["chosen"][-1]["content"], metadata, is_prompt=False)
    if "prompt" in row:
        return Question(index, tuple(row["prompt"]), row.get("answer"), metadata)
    messages = row["messages"]
    if messages[-1]["role"] != "assistant":
        return Question(index, tuple(messages), None, metadata, is_prompt=False)
    return Question(index, tuple(messages[:-1]), messages[-1]["content"], metadata, is_prompt=False)


def reward_for(questions: Sequence[Question], reward: RewardSpec | None) -> RewardSpec | None:
    """What scores the answers where the job names no reward: `exact` for rows of format prompt, and nothing for
    conversations and pairs, whose answers are seldom given word for word."""
    if reward is not None or not all(question.is_prompt for question in questions):
        return reward
    return RewardSpec("exact", rewards.complete("exact", {}))


def score(
    questions: Sequence[Question], completions: Sequence[str], judge: rewards.Judge, needs_answer: bool
) -> list[rewards.Score | None]:
    """One score a question, in order; None for those that lack the answer which the reward compares with.

    Raises RewardError.
    """
    judged = [question.expected is not None or not needs_answer for question in questions]
    samples = [
        rewards.RewardSample(question.messages, completion, question.expected, question.metadata)
        for question, completion, is_judged in zip(questions, completions, judged, strict=True)
        if is_judged
    ]
    scores = iter(judge.score(samples))
    return [next(scores) if is_judged else None for is_judged in judged]


def summarise(scores: Sequence[rewards.Score | None]) -> dict[str, float]:
    """The metrics of a validation: how many rows have a score, their mean, and the mean of each part."""
    scored = [score for score in scores if score is not None]
    values = {"validation/score/count": float(len(scored))}
    if scored:
        values["validation/score/mean"] = sum(score.score for score in scored) / len(scored)
        for part in scored[0].parts:
            values[f"validation/{part}/mean"] = sum(score.parts[part] for score in scored) / len(scored)
    return values
