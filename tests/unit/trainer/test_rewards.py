"""Rule rewards: what each is worth, and that no text makes one raise, hang or return NaN."""

import subprocess
import sys
from math import inf, isfinite, nan
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services import rewards
from services.mesh.errors import InvalidArgument
from services.mesh.registry import summary
from services.mesh.validation import params as mesh_params
from services.rewards import RewardSample, Score

ANY_TEXT = st.text(st.characters(codec=None), max_size=120)
PLACES = st.sampled_from(["whole", "last_line", "after_marker", "boxed"])
WHERE = st.sampled_from(["whole", "fenced", "last_line", "after_marker"])
# Whose scores are 0 and 1.
PARAMS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "exact": st.fixed_dictionaries({"look_in": PLACES, "ignore_case": st.booleans(), "unicode_forms": st.booleans()}),
    "numeric": st.fixed_dictionaries({"look_in": PLACES, "which": st.sampled_from(["last", "first", "only"])}),
    "regex": st.fixed_dictionaries({"pattern": st.sampled_from(["(?P<answer>.*)", "a+", "(a|b)*c$"])}),
    "json_schema": st.fixed_dictionaries({"schema": st.just({"type": "array"}), "look_in": WHERE}),
    "format_tags": st.fixed_dictionaries({"tags": st.just(["a", "b"])}),
    "math": st.fixed_dictionaries({"look_in": PLACES, "cpu_seconds": st.just(0.5)}),
}


def judge(name: str, completion: str, answer: str | None, **params: Any) -> Score:
    (score,) = rewards.score(name, params, [RewardSample("question", completion, answer)])
    return score


def test_the_registry_holds_these() -> None:
    assert set(PARAMS) < set(rewards.rewards.names())
    for _, entry in rewards.rewards.items():
        assert summary(entry)
        assert mesh_params.schema(entry.Params)["additionalProperties"] is False


@pytest.mark.parametrize(
    ("completion", "params", "correct", "form"),
    [
        (" 42\n", {}, 1, 1),
        (" 42\n", {"strip": False}, 0, 1),
        ("so 42", {}, 0, 1),
        ("so\n42\n", {"look_in": "last_line"}, 1, 1),
        ("so Answer: 42", {"look_in": "after_marker"}, 1, 1),
        ("so #### 42", {"look_in": "after_marker", "marker": "####"}, 1, 1),
        ("so 42", {"look_in": "after_marker"}, 0, 0),
        (r"\boxed{42}", {"look_in": "boxed"}, 1, 1),
        ("42", {"look_in": "boxed"}, 0, 0),
        ("４２", {}, 0, 1),
        ("４２", {"unicode_forms": True}, 1, 1),
    ],
)
def test_exact(completion: str, params: dict[str, Any], correct: float, form: float) -> None:
    assert judge("exact", completion, "42", **params) == Score(correct, {"correct": correct, "format": form})


def test_exact_spelling() -> None:
    assert judge("exact", "New  YORK", "new york", ignore_case=True, ignore_spacing=True).score == 1
    assert judge("exact", "New  York", "New York").score == 0


@pytest.mark.parametrize(
    ("completion", "answer", "params", "correct", "parsed"),
    [
        ("2 and 3 make 5.", "5", {}, 1, 1),
        ("2 and 3 make 5.", "5", {"which": "only"}, 0, 0),
        ("1,000", "#### 1000", {}, 1, 1),
        ("3.14", "3.14159", {}, 0, 1),
        ("3.14", "3.14159", {"absolute_tolerance": 0.01}, 1, 1),
        ("50%", "0.5", {}, 1, 1),
        ("50%", "50", {}, 0, 1),
        ("50%", "50", {"percent": "ignore"}, 1, 1),
        (r"7 \boxed{5} 8", "5", {"look_in": "boxed"}, 1, 1),
        ("five", "5", {}, 0, 0),
        ("5", "five", {}, 0, 1),
        ("nan", "nan", {}, 0, 0),
    ],
)
def test_numeric(completion: str, answer: str, params: dict[str, Any], correct: float, parsed: float) -> None:
    assert judge("numeric", completion, answer, **params) == Score(correct, {"correct": correct, "parsed": parsed})


def test_regex_without_an_answer_group_rewards_form() -> None:
    pattern = "<think>.*</think>.+"
    assert judge("regex", "<think>\n</think>5", None, pattern=pattern) == Score(1, {"format": 1})
    assert judge("regex", "5", None, pattern=pattern) == Score(0, {"format": 0})


def test_regex_with_an_answer_group_needs_the_answer() -> None:
    pattern = r"<think>.*</think>\s*(?P<answer>.+)"
    right, wrong, formless = (
        judge("regex", text, "5", pattern=pattern) for text in ("<think></think> 5", "<think></think> 6", "5")
    )
    assert (right.score, right.parts) == (1, {"format": 1, "correct": 1})
    assert (wrong.score, wrong.parts) == (0, {"format": 1, "correct": 0})
    assert (formless.score, formless.parts) == (0, {"format": 0, "correct": 0})


def test_math() -> None:
    assert judge("math", r"so \boxed{\frac12}", "0.5") == Score(1, {"correct": 1, "parsed": 1, "cut": 0})
    assert judge("math", "$7$ and \\boxed{x+1}", "1+x", look_in="boxed").score == 1
    assert judge("math", "no idea", "0.5") == Score(0, {"correct": 0, "parsed": 0, "cut": 0})
    assert judge("math", "$9^{9^{9^{9}}}$", "5", cpu_seconds=0.2) == Score(0, {"correct": 0, "parsed": 0, "cut": 1})


@pytest.mark.parametrize("name", ["exact", "numeric", "math"])
def test_a_row_without_an_answer_scores_nothing(name: str) -> None:
    assert rewards.needs_answer(name, {})
    assert judge(name, "5", None).score == 0
    assert judge(name, "", None).score == 0


@pytest.mark.parametrize("name", sorted(PARAMS))
def test_any_text_scores_between_0_and_1_with_the_same_parts(name: str) -> None:
    @settings(deadline=None, max_examples=60)
    @given(PARAMS[name], st.lists(st.tuples(ANY_TEXT, ANY_TEXT), min_size=1, max_size=4))
    def check(params: dict[str, Any], pairs: list[tuple[str, str]]) -> None:
        scores = rewards.score(name, params, [RewardSample([], *pair) for pair in pairs])
        assert len(scores) == len(pairs)
        assert len({tuple(score.parts) for score in scores}) == 1
        assert all(0 <= value <= 1 for score in scores for value in (score.score, *score.parts.values()))

    check()


@pytest.mark.parametrize("name", sorted(PARAMS))
@pytest.mark.parametrize("unit", ["1 ", "a", "\\boxed{", "{", "\n", "\x00", "\ud800", "Answer:", "1,", "$"])
def test_huge_texts(name: str, unit: str) -> None:
    needed: dict[str, dict[str, Any]] = {"regex": {"pattern": "(a+)+$"}, "json_schema": {"schema": {"type": "array"}}}
    params = needed.get(name, {})
    if name == "math":
        params["cpu_seconds"] = 0.5
    assert isfinite(judge(name, unit * 200_000, "5", **params).score)


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=30))
def test_the_answer_itself_is_exact(answer: str) -> None:
    assert judge("exact", answer, answer).score == 1


@pytest.mark.parametrize(
    ("name", "params", "field"),
    [
        ("exact", {"look_in": "nowhere"}, "reward.params.look_in"),
        ("exact", {"marker": ""}, "reward.params.marker"),
        ("exact", {"ignore_kase": True}, "reward.params.ignore_kase"),
        ("numeric", {"absolute_tolerance": -1}, "reward.params.absolute_tolerance"),
        ("numeric", {"relative_tolerance": nan}, "reward.params.relative_tolerance"),
        ("numeric", {"absolute_tolerance": inf}, "reward.params.absolute_tolerance"),
        ("regex", {}, "reward.params.pattern"),
        ("regex", {"pattern": "("}, "reward.params.pattern"),
        ("regex", {"pattern": r"(a)\1"}, "reward.params.pattern"),
        ("math", {"cpu_seconds": 0}, "reward.params.cpu_seconds"),
    ],
)
def test_wrong_params_are_named(name: str, params: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        rewards.score(name, params, [])
    assert [violation.field for violation in caught.value.violations] == [field]


def test_an_unknown_reward_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="exact, format_tags, json_schema, length, math"):
        rewards.score("vibes", {}, [])


@pytest.mark.parametrize("value", [nan, inf, -inf, 1e300, -3.5e38])
def test_a_score_is_finite(value: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        Score(value)
    with pytest.raises(ValueError, match="finite"):
        Score(0, {"part": value})


def test_the_registry_is_light() -> None:
    """Listing rewards must not load what only scoring needs, nor anything that only training needs."""
    heavy = "{'torch', 'verl', 'ray', 'transformers', 'sympy', 'math_verify', 'grpc'}"
    code = f"import sys; from services.rewards import rewards; rewards.items(); print({heavy} & set(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "set()"
