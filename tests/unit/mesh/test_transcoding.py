"""google.api.http: each rule of path, query, body and answer; the specification's examples have their own file."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from google.protobuf import message_factory
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.transcoding import transcoder
from services.gateway.transcoding.path_templates import NoRoute
from services.gateway.transcoding.transcoder import parse_query
from services.mesh.errors import InvalidArgument
from tests.fix_http_descriptors import COLOUR_0, SPEC, as_dict, compile_service, kinds, send, violations


def test_method_without_annotation_has_no_route() -> None:
    assert "Unbound" not in {route.method.name for route in transcoder.routes(compile_service("spec.v1", SPEC))}


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", {}),
        ("i32=-5&u32=7&i64=-9223372036854775808&u64=18446744073709551615", None),
        ("f32=1.5&f64=1e300", {"f32": 1.5, "f64": 1e300}),
        ("f64=NaN&f32=-Infinity", {"f64": "NaN", "f32": "-Infinity"}),
        ("flag=true", {"flag": True}),
        ("text=a+b%20c%26%C3%A9", {"text": "a b c&é"}),
        ("text=", {}),
        ("data=aGk%3D", {"data": "aGk="}),
        ("data=_-8", {"data": "/+8="}),
        ("colour=COLOUR_RED", {"colour": "COLOUR_RED"}),
        ("colour=1", {"colour": "COLOUR_RED"}),
        ("colour=7", {"colour": 7}),
        ("maybe=0", {"maybe": "0"}),
        ("numbers=1&numbers=2&numbers=1", {"numbers": [1, 2, 1]}),
        ("colours=1&colours=COLOUR_UNSPECIFIED", {"colours": ["COLOUR_RED", COLOUR_0]}),
        ("sub.count_of_it=3&sub.countOfIt=", None),
        ("sub.countOfIt=3&sub.inner.word=x", {"sub": {"count_of_it": 3, "inner": {"word": "x"}}}),
        ("maybeFlag=false", {"maybe_flag": False}),
        ("maybe_number=12&maybe_text=", {"maybe_number": "12", "maybe_text": ""}),
        ("maybe_data=aGk", {"maybe_data": "aGk="}),
        ("time=2026-01-31T10:00:00Z&span=3.5s", {"time": "2026-01-31T10:00:00Z", "span": "3.500s"}),
        ("mask=displayName,labels.a", {"mask": "displayName,labels.a"}),
        ("mask=display_name,labels", {"mask": "displayName,labels"}),
        ("tree=%7B%22a%22:%5B1,null%5D%7D", {"tree": {"a": [1.0, None]}}),
        ("value=%22x%22&list=%5B1%5D", {"value": "x", "list": [1.0]}),
        ("left=x", {"left": "x"}),
        ("right.word=x", {"right": {"word": "x"}}),
        ("&&text=x&", {"text": "x"}),
    ],
)
def test_query_fills_fields(query: str, expected: dict[str, Any] | None) -> None:
    if query.startswith("sub.count_of_it"):
        assert violations(kinds(), "GET", f"/q?{query}") == {"sub.count_of_it": "is given 2 times"}
        return
    message = send(kinds(), "GET", f"/q?{query}")[1]
    if expected is None:
        expected = {"i32": -5, "u32": 7, "i64": str(-(2**63)), "u64": str(2**64 - 1)}
    assert as_dict(message) == expected


@pytest.mark.parametrize(
    ("query", "field", "why"),
    [
        ("nothing_such=1", "nothing_such", "unknown query parameter; one of i32"),
        ("sub.nothing=1", "sub.nothing", "unknown query parameter"),
        ("i32.x=1", "i32.x", "unknown query parameter"),
        ("numbers.x=1", "numbers.x", "unknown query parameter"),
        ("=1", "", "unknown query parameter"),
        ("i32=", "i32", "must be an integer from -2147483648 to 2147483647 (got '')"),
        ("i32=2147483648", "i32", "must be an integer"),
        ("i32=1.5", "i32", "must be an integer"),
        ("i32=1_0", "i32", "must be an integer"),
        ("i32=%D9%A1", "i32", "must be an integer"),
        ("i64=1e999999", "i64", "must be an integer"),
        ("u32=-1", "u32", "must be an integer from 0"),
        ("flag=yes", "flag", "must be true or false"),
        ("f32=1e39", "f32", "must be a number"),
        ("f64=1e400", "f64", "must be a number"),
        ("f64=inf", "f64", "must be a number"),
        ("data=%21", "data", "must be base64"),
        ("colour=RED", "colour", "unknown value 'RED'; one of COLOUR_UNSPECIFIED, COLOUR_RED"),
        ("colours=1&colours=RED", "colours[1]", "unknown value"),
        ("i32=1&i32=2", "i32", "is given 2 times"),
        ("sub=x", "sub", "is not one value"),
        ("subs=x", "subs", "is not one value"),
        ("counts=x", "counts", "is not one value"),
        ("times=2026-01-31T10:00:00Z", "times", "is not one value"),
        ("time=yesterday", "time", "must be a Timestamp, such as"),
        ("span=3", "span", "must be a Duration, such as 3.5s"),
        ("mask=a,,b", "mask", "must be field paths"),
        ("tree=%7B", "tree", "is not JSON"),
        ("tree=1", "tree", "Struct"),
        ("maybe_flag=1", "maybe_flag", "must be true or false"),
        ("left=a&right.word=b&left=c", "left", "is given 2 times"),
        ("left=a&right.word=b", "right", "cannot be given together with left"),
    ],
)
def test_wrong_query_names_the_field(query: str, field: str, why: str) -> None:
    assert field in (found := violations(kinds(), "GET", f"/q?{query}"))
    assert why in found[field]


def test_every_violation_of_query_comes_at_once() -> None:
    found = violations(kinds(), "GET", "/q?i32=x&flag=x&nothing_such=1&colours=RED&colours=BLUE")
    assert set(found) == {"i32", "flag", "nothing_such", "colours[0]", "colours[1]"}


def test_query_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(InvalidArgument):
        parse_query("text=%ff")


def test_every_violation_of_body_query_and_path_comes_at_once() -> None:
    found = violations(kinds(), "PUT", "/s/x?i32=y&flag=maybe&sub.word=z", {"word": 1, "countOfIt": "x", "more": 1})
    assert set(found) == {"sub.word", "sub.count_of_it", "sub.more", "i32", "flag"}
    assert violations(kinds(), "GET", "/p/x/yes/RED/w?u32=-1").keys() == {"u32", "i32", "flag", "colour"}


def test_path_text_is_typed() -> None:
    message = send(kinds(), "GET", "/p/-4/true/COLOUR_RED/a%2Fb")[1]
    assert as_dict(message) == {"i32": -4, "flag": True, "colour": "COLOUR_RED", "sub": {"word": "a/b"}}


def test_path_goes_with_the_body_only_when_both_say_the_same() -> None:
    service = compile_service("spec.v1", SPEC)
    assert as_dict(send(service, "PATCH", "/v4/messages/1", {"messageId": "1"})[1]) == {"message_id": "1"}
    found = violations(service, "PATCH", "/v4/messages/1", {"messageId": "2"})
    assert found == {"message_id": "is '1' in the path and '2' in the body"}


def test_query_may_not_repeat_path_or_body() -> None:
    assert "in the path" in violations(kinds(), "PUT", "/s/x?text=y", {})["text"]
    assert "in the body" in violations(kinds(), "PUT", "/s/x?sub.word=y", {})["sub.word"]
    assert "belongs in the body" in violations(kinds(), "POST", "/b?text=y", {})["text"]


def test_body_where_none_is_taken_is_refused() -> None:
    with pytest.raises(InvalidArgument) as refused:
        send(kinds(), "GET", "/q", {})
    assert refused.value.reason == "UNEXPECTED_BODY"


def test_absent_body_leaves_its_field_unset() -> None:
    assert not send(kinds(), "PUT", "/s/x")[1].HasField("sub")
    assert as_dict(send(kinds(), "POST", "/b")[1]) == {}


def test_body_may_be_a_repeated_field_and_so_may_the_answer() -> None:
    name, message = send(kinds(), "PUT", "/l", [{"word": "a"}, {"word": "b"}])
    route = next(route for route in transcoder.routes(kinds()) if route.method.name == name)
    assert json.loads(route.answer(message)) == [
        {"word": "a", "countOfIt": 0},
        {"word": "b", "countOfIt": 0},
    ]
    assert violations(kinds(), "PUT", "/l", {}) == {"subs": "must be a JSON array (got {})"}


def test_response_body_sends_one_field_or_null() -> None:
    route = next(route for route in transcoder.routes(kinds()) if route.method.name == "SubBody")
    message = message_factory.GetMessageClass(route.method.output_type)()
    assert json.loads(route.answer(message)) is None
    message.sub.word = "x"
    assert json.loads(route.answer(message)) == {"word": "x", "countOfIt": 0}


def test_custom_and_star_patterns() -> None:
    assert as_dict(send(kinds(), "LINK", "/c/a/b")[1]) == {"rest": "a/b"}
    assert send(kinds(), "BREW", "/any?i32=1")[0] == "Star"
    with pytest.raises(NoRoute) as refused:
        send(kinds(), "GET", "/c/a/b")
    assert refused.value.allowed == {"LINK"}


@pytest.mark.parametrize(
    "rpc",
    [
        'rpc A(M) returns (M) { option (google.api.http) = { get: "/v1/{nothing}" }; }',
        'rpc A(M) returns (M) { option (google.api.http) = { get: "/v1/{many}" }; }',
        'rpc A(M) returns (M) { option (google.api.http) = { get: "/v1/{inner}" }; }',
        'rpc A(M) returns (M) { option (google.api.http) = { post: "/v1/a" body: "nothing" }; }',
        'rpc A(M) returns (M) { option (google.api.http) = { get: "/v1/a" response_body: "nothing" }; }',
        'rpc A(M) returns (M) { option (google.api.http) = { body: "*" }; }',
        'rpc A(M) returns (M) { option (google.api.http) = { get: "v1" }; }',
    ],
)
def test_annotation_that_cannot_be_served_is_refused(rpc: str) -> None:
    package = f"bad{abs(hash(rpc))}.v1"
    service = compile_service(
        package, f"service S {{ {rpc} }} message M {{ string a = 1; repeated string many = 2; M inner = 3; }}"
    )
    with pytest.raises(ValueError):
        list(transcoder.routes(service))


@given(st.text())
def test_no_query_breaks_reading(text: str) -> None:
    with contextlib.suppress(InvalidArgument, UnicodeEncodeError):
        send(kinds(), "GET", "/q?" + text.replace("?", ""))
