"""Which series may say what checkpoint is best: those that the validation of the job makes, and no other."""

from __future__ import annotations

from typing import Any

import pytest

from services.trainer import rewards
from services.trainer.rewards import RewardSample
from services.trainer.weights.questions import summarise
from tests.unit.trainer.test_algorithms import check

WEIGHTED = {"components": [{"name": "numeric"}, {"name": "length", "params": {"longest": 9}, "label": "brevity"}]}
CHAT = {"url": "http://127.0.0.1:1/", "model": "m", "rubric": "r"}
OWN = "def score(samples): return [0] * len(samples)"


def refused(algorithm: str, metric: str, reward: dict[str, Any], keep_best: int = 2) -> str | None:
    params = {"checkpoints": {"keep_best": keep_best, "metric": metric}, "reward": reward}
    return check(algorithm, params).get("checkpoints.metric")


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("exact", {}),
        ("numeric", {}),
        ("math", {}),
        ("regex", {"pattern": "a"}),
        ("regex", {"pattern": "(?P<answer>a)"}),
        ("json_schema", {"schema": {}}),
        ("format_tags", {"graded": True}),
        ("length", {"longest": 9}),
        ("repetition", {}),
        ("weighted", WEIGHTED),
    ],
)
def test_every_series_that_a_validation_makes_is_taken(name: str, params: dict[str, Any]) -> None:
    made = summarise(rewards.score(name, params, [RewardSample("q", "x 1", "1"), RewardSample("q", "", None)]))
    series = set(made) - {"validation/score/count"}
    assert series == {f"validation/{part}/mean" for part in (*(rewards.parts(name, params) or ()), "score")}
    assert {refused("sft", metric, {"name": name, "params": params}) for metric in series} == {None}


@pytest.mark.parametrize("algorithm", ["sft", "dpo", "grpo", "ppo", "dapo"])
def test_a_misspelt_one_is_refused_with_those_that_there_are(algorithm: str) -> None:
    said = refused(algorithm, "validation/corect/mean", {"name": "numeric"})
    assert said is not None and "validation/score/mean, validation/correct/mean, validation/parsed/mean" in said
    assert said.endswith("did you mean validation/correct/mean?")
    assert refused(algorithm, "validation/score/mean", {"name": "numeric"}) is None
    # The number of rows says nothing of a checkpoint, and nothing is chosen where all are kept.
    assert refused(algorithm, "validation/score/count", {"name": "numeric"}) is not None
    assert check(algorithm, {"checkpoints": {"metric": "validation/corect/mean"}}).get("checkpoints.metric") is None


def test_where_only_the_judge_knows_its_parts_any_part_is_taken() -> None:
    for reward in (
        {"name": "custom", "params": {"source": OWN}},
        {"name": "api", "params": {**CHAT, "protocol": "scores"}},
    ):
        assert refused("sft", "validation/tone/mean", reward) is None
        assert refused("sft", "validation/tone", reward) is not None
    assert refused("sft", "validation/tone/mean", {"name": "api", "params": CHAT}) is not None
    assert refused("sft", "validation/judged/mean", {"name": "api", "params": CHAT}) is None
    assert refused("sft", "validation/output/mean", {"name": "model", "params": {"model": "m"}}) is None
