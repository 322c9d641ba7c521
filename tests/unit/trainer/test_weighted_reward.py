"""A sum of rewards, and the contract that every reward is held to."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

import pytest

from services import rewards
from services.mesh.errors import InvalidArgument
from services.rewards import RewardError, RewardSample, Rule, Score
from services.rewards.spec import DEFAULT_REWARD_SITE

SAMPLES = [RewardSample("q", "4", "4"), RewardSample("q", "<think>a</think><answer>4</answer>", "4")]


def weighted(*components: dict[str, Any]) -> list[Score]:
    return rewards.score("weighted", {"components": list(components)}, SAMPLES)


def violations(params: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(InvalidArgument) as caught:
        rewards.parse("weighted", params, DEFAULT_REWARD_SITE, "params.reward")
    return {violation.field: violation.description for violation in caught.value.violations}


def test_a_sum_and_every_part_of_it() -> None:
    bare, formed = weighted(
        {"name": "exact", "weight": 2},
        {"name": "format_tags", "weight": 0.5},
        {"name": "length", "params": {"longest": 8}, "label": "short"},
    )
    assert bare.score == 2 * 1 + 0.5 * 0 - 1 / 8
    assert formed.score == 2 * 0 + 0.5 * 1 - 1
    assert bare.parts == {
        "exact": 1, "exact/correct": 1, "exact/format": 1,
        "format_tags": 0, "format_tags/once": 0, "format_tags/order": 0,
        "format_tags/clean": 0, "format_tags/filled": 0,
        "short": -1 / 8, "short/length": 1, "short/over": 0,
    }  # fmt: skip


def test_a_sum_in_a_sum() -> None:
    inner = {"name": "weighted", "params": {"components": [{"name": "exact"}]}, "weight": 3, "label": "goal"}
    assert [score.score for score in weighted(inner)] == [3, 0]
    assert weighted(inner)[0].parts == {"goal": 1, "goal/exact": 1, "goal/exact/correct": 1, "goal/exact/format": 1}


def test_every_violation_under_its_whole_path() -> None:
    inner = {"components": [{"name": "numeric", "params": {"which": "middle", "percent": 1}}]}
    components = [
        {"name": "regex", "params": {"pattern": "("}},
        {"name": "exac"},
        {"name": "exact", "params": {"x": 1}},
        {"name": "exact"},
        {"name": "weighted", "params": inner},
    ]
    found = violations({"components": components})
    assert set(found) == {
        "params.reward.params.components.0.params.pattern",
        "params.reward.params.components.1.name",
        "params.reward.params.components.2.params.x",
        "params.reward.params.components.3.label",
        "params.reward.params.components.4.params.components.0.params.which",
        "params.reward.params.components.4.params.components.0.params.percent",
    }
    assert "give one of them another" in found["params.reward.params.components.3.label"]
    assert list(violations({"components": []})) == ["params.reward.params.components"]
    assert list(violations({"components": [{"name": "exact", "weight": "much"}]})) == [
        "params.reward.params.components.0.weight"
    ]


def nested(depth: int) -> dict[str, Any]:
    component: dict[str, Any] = {"name": "exact"}
    for _ in range(depth):
        component = {"name": "weighted", "params": {"components": [component]}}
    return component["params"]


def test_sums_stand_in_each_other_so_deep_and_no_deeper() -> None:
    rewards.parse("weighted", nested(3), DEFAULT_REWARD_SITE)
    assert "3 deep" in next(iter(violations(nested(4)).values()))
    assert "3 deep" in next(iter(violations(nested(200)).values()))


def test_it_needs_an_answer_where_a_component_does() -> None:
    form = {"name": "format_tags"}
    assert not rewards.needs_answer("weighted", {"components": [form]})
    assert rewards.needs_answer("weighted", {"components": [form, {"name": "math"}]})
    assert rewards.needs_answer("weighted", nested(3))
    assert rewards.needs_answer("regex", {"pattern": "(?P<answer>.*)"})
    assert not rewards.needs_answer("regex", {"pattern": "a"})


def test_a_plan_has_every_parameter_of_every_component() -> None:
    (component,) = rewards.complete("weighted", {"components": [{"name": "repetition"}]})["components"]
    assert component == {
        "name": "repetition", "weight": 1, "label": "",
        "params": {"size": 4, "penalty": 1, "free_share": 0, "unit": "words"},
    }  # fmt: skip


class Answers(Rule):
    """Gives what a test wants."""

    Params = rewards.rewards.get("exact").Params
    given: Any = None

    @staticmethod
    def score(samples: Sequence[RewardSample], params: Any) -> list[Score]:
        given: Any = Answers.given
        scores: Any = [given(sample) for sample in samples] if callable(given) else given
        return scores


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> type[Answers]:
    monkeypatch.setitem(rewards.rewards._entries, "answers", Answers)
    monkeypatch.setattr(Answers, "given", None)
    return Answers


def error_of(given: Any) -> RewardError:
    Answers.given = given
    with pytest.raises(RewardError) as caught:
        rewards.score("answers", {}, SAMPLES)
    return caught.value


@pytest.mark.usefixtures("answers")
def test_an_error_names_the_reward_and_the_sample() -> None:
    def second_raises(sample: RewardSample) -> Score:
        return Score(1 / (len(sample.completion) == 1))

    error = error_of(second_raises)
    assert error.index == 1
    expected = "reward 'answers', sample 1 ('<think>a</think><answer>4</answer>'): ZeroDivisionError: division by zero"
    assert str(error) == expected

    def second_is_nan(sample: RewardSample) -> Score:
        return Score(float("nan") if len(sample.completion) > 1 else 0)

    error = error_of(second_is_nan)
    assert error.index == 1 and "must be finite" in str(error)

    def second_has_other_parts(sample: RewardSample) -> Score:
        return Score(0, {"a" if len(sample.completion) > 1 else "b": 1})

    error = error_of(second_has_other_parts)
    assert error.index == 1 and "has parts ['a'], others ['b']" in str(error)
    assert "gave 1 scores for 2 samples" in str(error_of([Score(0)]))
    assert "gave 0 scores for 2 samples" in str(error_of([]))


@pytest.mark.usefixtures("answers")
def test_an_error_of_a_component_names_it() -> None:
    Answers.given = []
    with pytest.raises(RewardError, match="reward 'answers': gave 0 scores"):
        weighted({"name": "exact"}, {"name": "answers"})


@pytest.mark.usefixtures("answers")
def test_an_error_quotes_the_beginning_alone_and_travels() -> None:
    def raises(sample: RewardSample) -> Score:
        raise ValueError("no")

    Answers.given = raises
    with pytest.raises(RewardError) as caught:
        rewards.score("answers", {}, [RewardSample("q", "x" * 100_000, None)])
    assert len(str(caught.value)) < 300
    # From one process to another, as Ray sends it.
    copied = pickle.loads(pickle.dumps(caught.value))
    assert (str(copied), copied.index, copied.reason) == (str(caught.value), 0, "REWARD_FAILED")


def test_no_samples_no_scores() -> None:
    assert rewards.score("exact", {}, []) == []
