"""Which series may say what checkpoint is best: those that the validation of the job makes, and no other."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from services import rewards
from services.mesh.validation.params import parse
from services.rewards import RewardSample
from services.trainer.algorithms import algorithms
from services.trainer.algorithms.validation_series import settle
from services.trainer.verifier.prompts import summarise
from tests.unit.trainer.test_algorithms import FACTS, check

ALL = (
    "validation/score/mean",
    "validation/loss",
    "validation/perplexity",
    "validation/accuracy",
    "validation/margin",
    "validation/tokens/count",
)

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


@pytest.mark.parametrize(
    ("algorithm", "rows", "series"),
    [
        ("sft", "messages", {"validation/loss", "validation/perplexity"}),
        ("dpo", "preference", {"validation/loss", "validation/accuracy", "validation/margin"}),
        ("reward_model", "preference", {"validation/loss", "validation/accuracy", "validation/margin"}),
    ],
)
def test_held_out_losses_may_choose_where_they_are_taken(algorithm: str, rows: str, series: set[str]) -> None:
    def refused(metric: str, **more: Any) -> str | None:
        params = {"checkpoints": {"keep_best": 2, "metric": metric}, **more}
        return check(algorithm, params, validation_format=rows).get("checkpoints.metric")

    assert {metric for metric in ALL if refused(metric) is None} == series
    assert series <= set(algorithms.get(algorithm).Params.held_out[rows])
    said = refused("validation/lost")
    assert said is not None and said.endswith("did you mean validation/loss?") and "with reward" not in said
    if algorithm != "reward_model":
        # Answers to conversations are scored where the job says by what.
        assert refused("validation/score/mean", reward={"name": "exact"}) is None


@pytest.mark.parametrize("algorithm", ["sft", "dpo", "grpo"])
def test_answers_to_questions_have_a_score_and_no_loss(algorithm: str) -> None:
    for metric in ALL:
        params = {"checkpoints": {"keep_best": 2, "metric": metric}}
        assert ("checkpoints.metric" in check(algorithm, params)) is (metric != "validation/score/mean")


def test_the_worst_is_never_kept_for_the_best() -> None:
    for metric in ("validation/loss", "validation/perplexity"):
        kept = {"keep_best": 1, "metric": metric, "mode": "max"}
        said = check("sft", {"checkpoints": kept}, validation_format="messages")
        assert said.keys() == {"checkpoints.mode"} and "less is better" in said["checkpoints.mode"]
        for mode in (None, "min"):
            assert check("sft", {"checkpoints": {**kept, "mode": mode}}, validation_format="messages") == {}


@pytest.mark.parametrize(
    ("algorithm", "rows", "given", "metric", "mode"),
    [
        ("sft", "messages", {}, "validation/loss", "min"),
        ("sft", "prompt", {}, "validation/score/mean", "max"),
        ("sft", "messages", {"reward": {"name": "numeric"}}, "validation/score/mean", "max"),
        ("sft", "messages", {"checkpoints": {"metric": "validation/perplexity"}}, "validation/perplexity", "min"),
        ("dpo", "preference", {}, "validation/loss", "min"),
        ("dpo", "preference", {"checkpoints": {"metric": "validation/margin"}}, "validation/margin", "max"),
        ("reward_model", "preference", {}, "validation/accuracy", "max"),
        ("grpo", "prompt", {}, "validation/score/mean", "max"),
        ("grpo", "prompt", {"checkpoints": {"mode": "min"}}, "validation/score/mean", "min"),
    ],
)
def test_what_chooses_is_written_down_when_a_job_is_created(
    algorithm: str, rows: str, given: dict[str, Any], metric: str, mode: str
) -> None:
    given = {**given, "checkpoints": {"keep_best": 2, **given.get("checkpoints", {})}}
    parsed = parse(algorithms.get(algorithm).Params, given)
    facts = dataclasses.replace(FACTS, validation_format=rows)
    kept = settle(parsed, facts).checkpoints
    assert (kept.metric, kept.mode, kept.keep_best) == (metric, mode, 2)


def test_nothing_chooses_where_all_stay() -> None:
    parsed = parse(algorithms.get("sft").Params, {})
    assert settle(parsed, FACTS) is parsed
