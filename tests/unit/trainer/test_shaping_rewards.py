"""json_schema, format_tags, length and repetition: what each is worth, and that no text or schema makes one hang."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services import rewards
from services.mesh.errors import InvalidArgument
from services.rewards import RewardSample, Score
from services.rewards.spec import DEFAULT_REWARD_SITE
from services.scoring import json_schema

ANY_TEXT = st.text(st.characters(codec=None), max_size=200)
POINT = {
    "type": "object",
    "properties": {"x": {"type": "number"}, "tags": {"type": "array", "uniqueItems": True}},
    "required": ["x"],
    "additionalProperties": False,
}


def judge(name: str, completion: str, **params: Any) -> Score:
    (score,) = rewards.score(name, params, [RewardSample("question", completion, None)])
    return score


@pytest.mark.parametrize(
    ("completion", "params", "valid", "parsed", "located"),
    [
        ('{"x": 1}', {}, 1, 1, 1),
        ('{"x": "1"}', {}, 0, 1, 1),
        ('{"x": 1, "y": 2}', {}, 0, 1, 1),
        ('so {"x": 1}', {}, 0, 0, 1),
        ('so\n```json\n{"x": 1}\n```\nthere', {"look_in": "fenced"}, 1, 1, 1),
        ('```\n{"x": 0}\n```\n```json\n{"x":\n1}\n```', {"look_in": "fenced"}, 1, 1, 1),
        ('```json\n{"x": 1}', {"look_in": "fenced"}, 0, 0, 0),
        ('{"x": 1}', {"look_in": "fenced"}, 0, 0, 0),
        ('Answer: {"x": 1}', {"look_in": "after_marker"}, 1, 1, 1),
        ('well\n{"x": 1}\n', {"look_in": "last_line"}, 1, 1, 1),
        ('{"x": NaN}', {}, 0, 0, 1),
        ('{"x": 1e999}', {}, 0, 0, 1),
        ('{"x": ' + "9" * 5000 + "}", {}, 0, 0, 1),
        ('{"x": 1, "tags": [1, 1.0]}', {}, 0, 1, 1),
        ('{"x": 1, "tags": [1, true, "1", [1], {"a": 1}]}', {}, 1, 1, 1),
    ],
)
def test_json_schema(completion: str, params: dict[str, Any], valid: float, parsed: float, located: float) -> None:
    expected = {"valid": valid, "parsed": parsed, "located": located, "cut": 0}
    assert judge("json_schema", completion, schema=POINT, **params) == Score(valid, expected)


def test_json_that_the_schema_refuses_may_be_worth_something() -> None:
    assert judge("json_schema", "[]", schema=POINT, parsed_score=0.2).score == 0.2
    assert judge("json_schema", "[", schema=POINT, parsed_score=0.2).score == 0


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"$ref": "http://127.0.0.1/x"}, "must lead into the schema"),
        ({"$ref": "file:///etc/passwd"}, "must lead into the schema"),
        ({"$id": "http://x/", "type": "object"}, r"\$id is not taken"),
        ({"$ref": "#/$defs/none"}, "leads nowhere"),
        ({"$ref": "#"}, "without end"),
        ({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "without end"),
        ({"type": "objekt"}, "type"),
        ({"pattern": "("}, "pattern"),
        ({"properties": {"a": {"pattern": r"(a)\1"}}}, "pattern"),
        ({"patternProperties": {"(a+)+$": {}}}, "patternProperties is not taken"),
        ({"$schema": "http://json-schema.org/draft-04/schema#"}, r"\$schema"),
        ({"enum": ["x" * 70_000]}, "characters long"),
    ],
)
def test_a_schema_that_is_not_taken(schema: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidArgument, match=says) as caught:
        rewards.parse("json_schema", {"schema": schema}, DEFAULT_REWARD_SITE)
    assert [violation.field for violation in caught.value.violations] == ["reward.params.schema"]


def test_a_schema_nested_too_deeply_is_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(2000):
        schema = {"not": schema}
    with pytest.raises(json_schema.BadSchemaError, match="deep"):
        json_schema.Schema(schema)


def test_names_that_look_like_keywords_are_names() -> None:
    schema = {"properties": {"$id": {"type": "string"}, "pattern": {"const": {"$ref": "x"}}}}
    assert judge("json_schema", '{"$id": "a", "pattern": {"$ref": "x"}}', schema=schema).score == 1


DOUBLING = {"anyOf": [{"type": "array", "minItems": n, "items": {"$ref": "#"}} for n in (1, 0)]}
HOSTILE = [
    "[" * 100_000,
    "[" * 30 + "1" + "]" * 30,
    '{"a":' * 31 + "1" + "}" * 31,
    '"' + '\\"' * 60_000,
    '"' * 60_001,
    "```json\n" * 20_000,
    "[" + "1," * 32_000 + "1]",
    "\x00" * 70_000,
    json.dumps("\ud800"),
]


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("where", ["whole", "fenced"])
def test_hostile_documents_end(text: str, where: Any) -> None:
    began = time.process_time()
    found = judge("json_schema", text, schema=DOUBLING, look_in=where)
    assert 0 <= found.score <= 1
    assert time.process_time() - began < 10, "quadratic or worse"


def test_a_validation_that_doubles_at_each_level_is_cut_and_says_so() -> None:
    assert judge("json_schema", "[" * 30 + "1" + "]" * 30, schema=DOUBLING).parts["cut"] == 1


def test_a_pattern_of_the_schema_takes_linear_time() -> None:
    began = time.process_time()
    assert judge("json_schema", json.dumps("a" * 50_000 + "!"), schema={"pattern": "(a+)+$"}).score == 0
    assert time.process_time() - began < 2


@settings(deadline=None, max_examples=100)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), st.lists, max_leaves=20))
def test_what_json_writes_is_read(value: Any) -> None:
    assert judge("json_schema", json.dumps(value), schema={}).score == float(len(json.dumps(value)) < 65_536)


WHOLE = {"once": 1, "order": 1, "clean": 1, "filled": 1}


@pytest.mark.parametrize(
    ("completion", "parts"),
    [
        ("<think>a</think><answer>b</answer>", WHOLE),
        (" <think>\na</think>\n\n<answer>b</answer>\n", WHOLE),
        ("<think>a</think> so <answer>b</answer>", {**WHOLE, "clean": 0}),
        ("<think></think><answer>b</answer>", {**WHOLE, "filled": 0.5}),
        ("<answer>b</answer><think>a</think>", {**WHOLE, "order": 0, "clean": 0}),
        ("<think>a<answer>b</answer></think>", {**WHOLE, "order": 0, "clean": 0}),
        ("<think>a</think><answer>b", {"once": 0.5, "order": 0, "clean": 0, "filled": 0.5}),
        ("<think>a</think><think>a</think><answer>b</answer>", {"once": 0.5, "order": 0, "clean": 0, "filled": 0.5}),
        ("</think>a<think><answer>b</answer>", {"once": 1, "order": 0, "clean": 0, "filled": 0.5}),
        ("", {"once": 0, "order": 0, "clean": 0, "filled": 0}),
    ],
)
def test_format_tags(completion: str, parts: dict[str, float]) -> None:
    assert judge("format_tags", completion) == Score(float(parts == WHOLE), parts)
    assert judge("format_tags", completion, graded=True) == Score(sum(parts.values()) / 4, parts)


@given(ANY_TEXT, ANY_TEXT)
def test_whatever_stands_inside_the_form_holds(thought: str, answer: str) -> None:
    marked = any(mark in thought + answer for mark in ("<think>", "</think>", "<answer>", "</answer>"))
    score = judge("format_tags", f"<think>{thought}</think><answer>{answer}</answer>")
    if not marked:
        assert score.score == float(bool(thought.strip() and answer.strip()))


@pytest.mark.parametrize(
    ("size", "params", "worth"),
    [
        (5, {"free": 5}, 0),
        (7, {"free": 5}, -0.4),
        (10, {"free": 5}, -1),
        (99, {"free": 5}, -1),
        (5, {"shape": "linear"}, 0.5),
        (5, {"shape": "linear", "high": 0, "low": -2}, -1),
        (5, {"shape": "cosine"}, 0.5),
        (0, {"shape": "cosine"}, 1),
        (10, {"shape": "cosine"}, 0),
        (1, {"shape": "linear", "shortest": 2, "free": 3}, 0),
        (2, {"shape": "linear", "shortest": 2, "free": 3}, 1),
    ],
)
def test_length(size: int, params: dict[str, Any], worth: float) -> None:
    found = judge("length", "a" * size, longest=10, **params)
    assert found.score == pytest.approx(worth)
    assert found.parts == {"length": size, "over": float(size >= 10)}


def test_length_in_words() -> None:
    assert judge("length", " one  two\nthree ", longest=6, shape="linear", unit="words").parts["length"] == 3


@given(st.integers(0, 300), st.integers(0, 300), st.sampled_from(["linear", "cosine", "soft_overlong"]))
def test_longer_is_never_worth_more(first: int, second: int, shape: str) -> None:
    short, long = sorted((first, second))
    scores = [judge("length", "a" * size, longest=200, free=50, shape=shape).score for size in (short, long)]
    assert scores[0] >= scores[1]


@pytest.mark.parametrize(
    "params",
    [{"longest": 5, "free": 5}, {"longest": 5, "free": 1, "shortest": 2}, {"longest": 5, "shape": "linear", "low": 1}],
)
def test_lengths_that_contradict_each_other(params: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match="must be"):
        rewards.parse("length", params)


@pytest.mark.parametrize(
    ("completion", "params", "share"),
    [
        ("a b c d e", {}, 0),
        ("a b a b a b", {"size": 2}, 0.6),
        ("A b a B", {"size": 2}, 1 / 3),
        ("no no no no", {"size": 1}, 0.75),
        ("哈哈哈哈哈", {"size": 2, "unit": "characters"}, 0.75),
        ("", {}, 0),
    ],
)
def test_repetition(completion: str, params: dict[str, Any], share: float) -> None:
    found = judge("repetition", completion, penalty=2, **params)
    assert (found.score, found.parts) == (pytest.approx(-2 * share), {"repeated": pytest.approx(share)})


def test_some_repetition_may_be_free() -> None:
    assert judge("repetition", "no no no no", size=1, free_share=0.5).score == pytest.approx(-0.5)
    assert judge("repetition", "no no no no", size=1, free_share=0.75).score == 0


@given(ANY_TEXT, st.integers(1, 5), st.sampled_from(["words", "characters"]))
def test_repetition_costs_between_nothing_and_the_penalty(text: str, size: int, unit: str) -> None:
    score = judge("repetition", text, size=size, unit=unit, penalty=3).score
    assert -3 <= score <= 0
    # Said twice, nothing is said that was not repeated already.
    assert judge("repetition", f"{text} {text}", size=size, unit=unit, penalty=3).score <= score + 1e-9 or size > 1


@pytest.mark.parametrize("unit", ["a", "a ", "<think>", "</think>", "\n", "\ud800", "```"])
@pytest.mark.parametrize("name", ["format_tags", "length", "repetition"])
def test_huge_texts(name: str, unit: str) -> None:
    params: dict[str, Any] = {"longest": 100} if name == "length" else {}
    began = time.process_time()
    judge(name, unit * 200_000, **params)
    assert time.process_time() - began < 10, "quadratic or worse"
