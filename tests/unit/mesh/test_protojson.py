"""JSON bodies: what is taken, what is refused and how it is named, and that nothing breaks the reader."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf import json_format, message_factory
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st
from rlhf.dataset.v1 import dataset_pb2

from services.gateway.transcoding import transcoder
from services.mesh.errors import InvalidArgument
from services.mesh.rpc import protojson
from tests.fix_http_descriptors import COLOUR_0, as_dict, kinds, send, violations


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"i64": "5", "u64": 6}, {"i64": "5", "u64": "6"}),
        ({"i32": 1.0, "i64": "1e3"}, {"i32": 1, "i64": "1000"}),
        ({"f64": "1.5", "f32": 2}, {"f64": 1.5, "f32": 2.0}),
        ({"colour": 1, "colours": ["COLOUR_RED", 0]}, {"colour": "COLOUR_RED", "colours": ["COLOUR_RED", COLOUR_0]}),
        ({"sub": {"countOfIt": 1, "inner": {"word": "x"}}}, {"sub": {"count_of_it": 1, "inner": {"word": "x"}}}),
        ({"sub": {"count_of_it": 1}}, {"sub": {"count_of_it": 1}}),
        ({"sub": {}}, {"sub": {}}),
        ({"sub": None, "i32": None, "numbers": None}, {}),
        ({"value": None}, {"value": None}),
        ({"nothing": None}, {}),
        ({"tree": {"a": {"b": [True, None, "x"]}}}, {"tree": {"a": {"b": [True, None, "x"]}}}),
        ({"counts": {"a": 1}}, {"counts": {"a": 1}}),
        ({"subsByNumber": {"-3": {"word": "x"}}}, {"subs_by_number": {"-3": {"word": "x"}}}),
        ({"coloursByFlag": {"true": "COLOUR_RED"}}, {"colours_by_flag": {"true": "COLOUR_RED"}}),
        ({"left": None, "right": {"word": "x"}}, {"right": {"word": "x"}}),
        ({"any": {"@type": "type.googleapis.com/kinds.v1.Sub", "word": "x"}}, None),
        ({"times": ["2026-01-31T10:00:00Z"]}, {"times": ["2026-01-31T10:00:00Z"]}),
    ],
)
def test_body_fills_fields(body: dict[str, Any], expected: dict[str, Any] | None) -> None:
    message = send(kinds(), "POST", "/b", body)[1]
    if expected is None:
        expected = body | ({"colour": "COLOUR_RED", "colours": ["COLOUR_RED", COLOUR_0]} if "colour" in body else {})
    assert as_dict(message) == expected


@pytest.mark.parametrize(
    ("body", "field", "why"),
    [
        ({"sub": {"nothing": 1}}, "sub.nothing", "unknown field; one of word, count_of_it, inner"),
        ({"subs": [{}, {"nothing": 1}]}, "subs[1].nothing", "unknown field"),
        ({"i32": "x"}, "i32", "must be an integer"),
        ({"i32": True}, "i32", "must be an integer"),
        ({"i32": 1.5}, "i32", "must be an integer"),
        ({"flag": "true"}, "flag", "must be true or false"),
        ({"flag": 1}, "flag", "must be true or false"),
        ({"text": 1}, "text", "must be a string"),
        ({"text": "\ud800"}, "text", "surrogate"),
        ({"data": "a b"}, "data", "must be base64"),
        ({"colour": 1.5}, "colour", "unknown value"),
        ({"colour": True}, "colour", "unknown value"),
        ({"f64": 10**400}, "f64", "must be a number"),
        ({"f64": True}, "f64", "must be a number"),
        ({"numbers": 1}, "numbers", "must be a JSON array"),
        ({"numbers": [1, None]}, "numbers[1]", "must be an integer"),
        ({"counts": [1]}, "counts", "must be a JSON object"),
        ({"counts": {"a": "x"}}, "counts['a']", "must be an integer"),
        ({"subsByNumber": {"x": {}}}, "subs_by_number['x']", "key must be an integer"),
        ({"sub": "x"}, "sub", "must be a JSON object"),
        ({"subs": [None]}, "subs[0]", "must be a JSON object"),
        ({"sub": {}, "i32": 1, "text": "a", "left": "x", "right": {}}, "right", "cannot be given together with left"),
        ({"subsByNumber": {}, "subs_by_number": {}}, "subs_by_number", "given twice"),
        ({"time": 5}, "time", "must be a string that holds a Timestamp"),
        ({"tree": []}, "tree", "Struct"),
        ({"tree": {"a": 10**400}}, "tree", "too large"),
        ({"any": {"word": "x"}}, "any", "@type"),
        ({"any": {"@type": "type.googleapis.com/google.protobuf.Value"}}, "any", ""),
        ([1], "body", "must be a JSON object"),
        ("x", "body", "must be a JSON object"),
    ],
)
def test_wrong_body_names_the_field(body: Any, field: str, why: str) -> None:
    found = violations(kinds(), "POST", "/b", body)
    assert set(found) == {field}
    assert why in found[field]


@pytest.mark.parametrize(
    ("raw", "why", "metadata"),
    [
        (b'{"a": 1,}', "line 1 column", {"line", "column"}),
        (b'{"i32": 1,\n "x": }', "line 2 column 7", {"line", "column"}),
        (b'{"i32": 1, "i32": 2}', "stands twice", set()),
        (b'{"i32": NaN}', "NaN", set()),
        (b"\xff", "not UTF-8 at byte 0", {"byte"}),
        (b"[" * 100_000, "nested too deep", set()),
        (b'{"i64": ' + b"9" * 5000 + b"}", "digit", set()),
    ],
)
def test_malformed_json_tells_where(raw: bytes, why: str, metadata: set[str]) -> None:
    with pytest.raises(InvalidArgument) as refused:
        send(kinds(), "POST", "/b", raw)
    assert refused.value.reason == "MALFORMED_JSON"
    assert why in str(refused.value)
    assert set(refused.value.metadata) == metadata


def test_struct_nested_too_deep_is_a_violation_and_not_a_crash() -> None:
    deep = b'{"tree":' + b'{"a":' * 900 + b"1" + b"}" * 900 + b"}"
    with pytest.raises(InvalidArgument):
        send(kinds(), "POST", "/b", deep)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


field_names = st.sampled_from(
    [
        name
        for f in message_factory.GetMessageClass(kinds().methods_by_name["Body"].input_type).DESCRIPTOR.fields
        for name in (f.name, f.json_name)
    ]
)


@given(st.dictionaries(field_names | st.text(max_size=3), json_values, max_size=4))
def test_no_body_breaks_reading(tree: dict[str, Any]) -> None:
    message = message_factory.GetMessageClass(kinds().methods_by_name["Body"].input_type)()
    found = protojson.fill(message, tree)
    assert all(violation.description for violation in found)
    if not found:
        # What we take, Google's own reader takes too, and to the same message.
        assert json_format.ParseDict(tree, type(message)()) == message


@given(
    st.builds(
        dataset_pb2.Dataset,
        name=st.text(),
        labels=st.dictionaries(st.text(), st.text()),
    )
    | st.builds(
        dataset_pb2.ValidationReport,
        row_count=st.integers(-(2**63), 2**63 - 1),
        finding_count_by_reason=st.dictionaries(st.text(), st.integers(-(2**63), 2**63 - 1)),
        findings=st.lists(st.builds(dataset_pb2.Finding, row=st.integers(0, 2**63 - 1), message=st.text()), max_size=3),
    )
)
def test_reads_back_what_it_prints(message: Message) -> None:
    choices: list[dict[str, Any]] = [
        {},
        {"always_print_fields_with_no_presence": True},
        {"preserving_proto_field_name": True},
    ]
    for options in choices:
        again = type(message)()
        assert protojson.fill(again, json_format.MessageToDict(message, **options)) == []
        assert again == message


def test_answer_prints_zero_values_and_long_integers_as_text() -> None:
    route = next(route for route in transcoder.routes(kinds()) if route.method.name == "Query")
    message = message_factory.GetMessageClass(route.method.output_type)()
    message.i64, message.f64, message.text = 2**60, float("nan"), "é"
    raw = route.answer(message)
    printed = json.loads(raw)
    assert (printed["i64"], printed["f64"], printed["text"]) == (str(2**60), "NaN", "é")
    assert (printed["i32"], printed["numbers"], printed["counts"]) == (0, [], {})
    assert printed["colour"] == COLOUR_0
    assert "sub" not in printed and "maybe" not in printed
    assert "é".encode() in raw
