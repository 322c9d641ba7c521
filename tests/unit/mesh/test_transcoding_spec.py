"""google.api.http: the examples in the comment of google/api/http.proto, read from there and run, then its rules."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from google.protobuf import text_format
from hypothesis import example, given
from hypothesis import strategies as st

from services.gateway.transcoding import transcoder
from services.gateway.transcoding.path_templates import NoRoute, PathTemplate, Router
from tests.fix_http_descriptors import COLOUR_0, SPEC, as_dict, compile_service, kinds, send, violations

SPECIFICATION = Path(__file__).parents[3] / "proto" / "vendor" / "google" / "api" / "http.proto"


def examples() -> list[tuple[str, str, str, str]]:
    """(source of the service, HTTP method, target and body, the gRPC call) of each `- HTTP:` … `- gRPC:` pair."""
    lines = [line.removeprefix("//").rstrip() for line in SPECIFICATION.read_text().splitlines()]
    text = "\n".join(lines)
    found = []
    pieces = re.split(r"\n     (?=service Messaging)", text)[1:]
    for piece in pieces:
        source = re.match(r"(?:.*\n)(?:(?:     .*)?\n)*", piece)
        assert source is not None
        for http, rpc in re.findall(r"^ - HTTP: `(.*?)`\n - gRPC: `(.*?)`", piece, re.MULTILINE | re.DOTALL):
            verb, _, rest = http.partition(" ")
            found.append((source[0].replace("service Messaging", "service S"), verb, rest, " ".join(rpc.split())))
    return found


def test_every_example_of_the_specification_is_found() -> None:
    assert len(examples()) == SPECIFICATION.read_text().count("- HTTP:") == 6
    assert len({source for source, *_ in examples()}) == 5


@pytest.mark.parametrize("index", range(6))
def test_example_of_the_specification(index: int) -> None:
    source, verb, rest, rpc = examples()[index]
    target, _, body = rest.partition(" ")
    if "message Message {" not in source:
        # The later ones mean that of the first.
        source += "message Message { string text = 1; }"
    service = compile_service(f"example{source.count(chr(10))}x{sum(map(ord, source))}.v1", source)
    name, message = send(service, verb, target, body.encode() or None)
    method, _, fields = rpc.removesuffix(")").partition("(")
    expected = type(message)()
    text_format.Parse(re.sub(r"SubMessage\((.*?)\)", r"{\1}", fields), expected)
    assert (name, message) == (method, expected)


def test_example_of_a_service_configuration() -> None:
    name, message = send(compile_service("spec.v1", SPEC), "GET", "/v6/messages/1/x")
    assert (name, as_dict(message)) == ("GetSub", {"message_id": "1", "sub": {"subfield": "x"}})


RULES: list[tuple[str, str, str, Any, dict[str, Any]]] = [
    ("path, body and query each fill what is theirs", "PUT", "/s/a?i32=1&colour=1", {"word": "b"},
     {"text": "a", "i32": 1, "colour": "COLOUR_RED", "sub": {"word": "b"}}),
    ("a repeated field as several parameters of one name", "GET", "/q?words=A&words=B", None, {"words": ["A", "B"]}),
    ("a message as one parameter for each field", "GET", "/q?sub.word=A&sub.count_of_it=2&sub.inner.word=C", None,
     {"sub": {"word": "A", "count_of_it": 2, "inner": {"word": "C"}}}),
    ("with a body of * the rest is in the body", "POST", "/b", {"text": "a", "sub": {"word": "b"}, "numbers": [1]},
     {"text": "a", "sub": {"word": "b"}, "numbers": [1]}),
    ("an array as the body", "PUT", "/l", [{"word": "a"}], {"subs": [{"word": "a"}]}),
    ("a custom method", "LINK", "/c/a/b/c", None, {"rest": "a/b/c"}),
    ("any method", "PROPFIND", "/any?text=x", None, {"text": "x"}),
    ("** takes no segment too", "LINK", "/c", None, {}),
    ("an enum by number in the path", "GET", "/p/1/false/1/x", None,
     {"i32": 1, "colour": "COLOUR_RED", "sub": {"word": "x"}}),
    ("an enum by name or number in the body", "POST", "/b", {"colour": 1, "colours": ["COLOUR_RED", 0]},
     {"colour": "COLOUR_RED", "colours": ["COLOUR_RED", COLOUR_0]}),
    ("an int64 as text or number in the body", "POST", "/b", {"i64": "-9007199254740993", "u64": 9007199254740993},
     {"i64": "-9007199254740993", "u64": "9007199254740993"}),
    ("an int64 with an exponent", "POST", "/b", {"i64": 1e3, "numbers": ["2", 3.0]},
     {"i64": "1000", "numbers": [2, 3]}),
    ("bytes of both alphabets", "POST", "/b", {"data": "_-8", "maybeData": "/+8="},
     {"data": "/+8=", "maybe_data": "/+8="}),
    ("names of both spellings", "POST", "/b", {"maybe_number": "1", "maybeText": "x"},
     {"maybe_number": "1", "maybe_text": "x"}),
    ("well-known types in the body", "POST", "/b",
     {"time": "2026-01-31T10:00:00.5Z", "span": "1.5s", "mask": "a,bC.d", "tree": {"a": None}, "list": [1, "x"]},
     {"time": "2026-01-31T10:00:00.500Z", "span": "1.500s", "mask": "a,bC.d", "tree": {"a": None}, "list": [1, "x"]}),
    ("null is absent, but in a Value", "POST", "/b", {"text": None, "subs": None, "value": None}, {"value": None}),
    ("maps with keys of any kind", "POST", "/b", {"subsByNumber": {"1": {"word": "x"}}, "coloursByFlag": {"true": 1}},
     {"subs_by_number": {"1": {"word": "x"}}, "colours_by_flag": {"true": "COLOUR_RED"}}),
]  # fmt: skip


@pytest.mark.parametrize(("method", "target", "body", "expected"), [r[1:] for r in RULES], ids=[r[0] for r in RULES])
def test_rule_of_the_specification(method: str, target: str, body: Any, expected: dict[str, Any]) -> None:
    assert as_dict(send(kinds(), method, target, body)[1]) == expected


def test_what_the_specification_rules_out_of_the_query() -> None:
    found = violations(kinds(), "GET", "/q?subs.word=x&subs=x&counts.a=1&subsByNumber=x")
    assert set(found) == {"subs.word", "subs", "counts.a", "subs_by_number"}
    assert set(violations(kinds(), "POST", "/b?text=x", {})) == {"text"}


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ('get: "/v1/{a}" additional_bindings { get: "/v2/{a}" additional_bindings { get: "/v3/{a}" } }', "one level"),
        ('get: "/v1/{a}" body: "*"', "no body"),
        ('get: "/v1/{by_name}"', "single scalar"),
        ('get: "/v1/{many}"', "single scalar"),
        ('get: "/v1/{a=b/{c}}"', "path template"),
        ('get: "/v1/{a=**}/b"', "last segment"),
        ('post: "/v1/{a}" body: "inner.a"', "no field inner.a"),
        ('get: "/v1/{a}" response_body: "inner.a"', "no field inner.a"),
    ],
)
def test_annotation_that_the_specification_rules_out_is_refused(rule: str, why: str) -> None:
    service = compile_service(
        f"ruled{sum(map(ord, rule))}.v1",
        f"service S {{ rpc A(M) returns (M) {{ option (google.api.http) = {{ {rule} }}; }} }}"
        "message M { string a = 1; repeated string many = 2; M inner = 3; map<string, string> by_name = 4; }",
    )
    with pytest.raises(ValueError, match=why):
        list(transcoder.routes(service))


def captured(template: str, path: str) -> dict[str, str]:
    router: Router[None] = Router()
    router.add("GET", PathTemplate.parse(template), None)
    return router.find("GET", path).capture()


@given(st.text(min_size=1))
@example("a/b:c?d#e%f+g é~._-")
def test_one_segment_comes_back_as_it_was_expanded(text: str) -> None:
    expanded = quote(text, safe="-_.~", errors="replace")
    was = text.encode(errors="replace").decode()
    assert captured("/v1/{name}", f"/v1/{expanded}") == captured("/v1/{name=*}", f"/v1/{expanded}") == {"name": was}


@given(st.lists(st.text(min_size=1).filter(lambda part: "/" not in part), min_size=1, max_size=4))
@example(["a%2Fb", "c:d", "+"])
def test_several_segments_come_back_as_they_were_expanded(parts: list[str]) -> None:
    expanded = quote("/".join(parts), safe="-_.~/", errors="replace")
    was = "/".join(parts).encode(errors="replace").decode()
    assert captured("/v1/{name=**}", f"/v1/{expanded}") == {"name": was}
    assert captured("/v1/{name=x/**}:go", f"/v1/x/{expanded}:go") == {"name": f"x/{was}"}


def test_an_escaped_slash_is_one_in_one_segment_only() -> None:
    assert captured("/v1/{name}", "/v1/a%2Fb%2fc") == {"name": "a/b/c"}
    assert captured("/v1/{name=a/*}", "/v1/a/b%2Fc%2fd%20e") == {"name": "a/b%2Fc%2fd e"}
    assert captured("/v1/{name=**}", "/v1/b%2Fc/d") == {"name": "b%2Fc/d"}


def test_no_variable_captures_the_leading_slash_and_an_empty_segment_fits_no_star() -> None:
    assert captured("/{name=**}", "/a/b") == {"name": "a/b"}
    for path in ("/v1/", "/v1//", "/v1"):
        with pytest.raises(NoRoute):
            captured("/v1/{name}", path)
