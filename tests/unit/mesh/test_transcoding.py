"""google.api.http: the examples of its specification, then every rule of path, query, body and answer."""

import contextlib
import functools
import json
import tempfile
from importlib import util
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import (  # noqa: F401
    any_pb2,
    descriptor_pb2,
    descriptor_pool,
    duration_pb2,
    field_mask_pb2,
    json_format,
    message_factory,
    struct_pb2,
    timestamp_pb2,
    wrappers_pb2,
)
from google.protobuf.message import Message
from grpc_tools import protoc
from hypothesis import given
from hypothesis import strategies as st
from rlhf.dataset.v1 import dataset_pb2, dataset_service_pb2
from rlhf.trainer.v1 import trainer_service_pb2
from rlhf.type.v1 import job_state_pb2

from services.mesh import protojson, transcoding
from services.mesh.errors import InvalidArgument
from services.mesh.path_templates import NoRoute, Router
from services.mesh.transcoding import Route, parse_query

HEAD = """
syntax = "proto3";
package {package};
import "google/api/annotations.proto";
import "google/api/field_behavior.proto";
import "google/protobuf/any.proto";
import "google/protobuf/duration.proto";
import "google/protobuf/field_mask.proto";
import "google/protobuf/struct.proto";
import "google/protobuf/timestamp.proto";
import "google/protobuf/wrappers.proto";
"""


@functools.cache
def compile_service(package: str, source: str) -> Any:
    """The service `S` in `source`, a proto file without its head, compiled in memory."""
    with tempfile.TemporaryDirectory() as folder:
        file, output = Path(folder, f"{package}.proto"), Path(folder, "out.binpb")
        file.write_text(HEAD.format(package=package) + source)
        annotations, tools = util.find_spec("google.api.annotations_pb2"), util.find_spec("grpc_tools")
        assert annotations and annotations.origin and tools and tools.origin
        includes = [Path(annotations.origin).parents[2], Path(tools.origin).parent / "_proto"]
        arguments = ["protoc", f"-I{folder}", *(f"-I{path}" for path in includes), f"--descriptor_set_out={output}"]
        assert protoc.main([*arguments, str(file)]) == 0
        files = descriptor_pb2.FileDescriptorSet.FromString(output.read_bytes())
    pool: Any = descriptor_pool.Default()
    for proto in files.file:
        pool.AddSerializedFile(proto.SerializeToString())
    return pool.FindServiceByName(f"{package}.S")


def send(service: Any, method: str, target: str, body: object = None) -> tuple[str, Message]:
    """What an HTTP request becomes: the RPC's name and its message."""
    router: Router[Route] = Router()
    for route in transcoding.routes(service):
        router.add(route.http_method, route.template, route)
    path, _, query = target.partition("?")
    found = router.find(method, path)
    raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    return found.value.method.name, found.value.request(found.capture(), parse_query(query), raw)


def violations(service: Any, method: str, target: str, body: object = None) -> dict[str, str]:
    with pytest.raises(InvalidArgument) as refused:
        send(service, method, target, body)
    return {violation.field: violation.description for violation in refused.value.violations}


SPEC = """
service S {
  rpc GetMessage(GetMessageRequest) returns (Message) { option (google.api.http) = {
    get: "/v1/{name=messages/*}" }; }
  rpc GetMessageRevision(GetRevisionRequest) returns (Message) { option (google.api.http) = {
    get: "/v2/messages/{message_id}" }; }
  rpc UpdateMessage(UpdateMessageRequest) returns (Message) { option (google.api.http) = {
    patch: "/v3/messages/{message_id}" body: "message" }; }
  rpc UpdateMessageWhole(Whole) returns (Whole) { option (google.api.http) = {
    patch: "/v4/messages/{message_id}" body: "*" }; }
  rpc GetUserMessage(GetUserMessageRequest) returns (Message) { option (google.api.http) = {
    get: "/v5/messages/{message_id}"
    additional_bindings { get: "/v5/users/{user_id}/messages/{message_id}" } }; }
  rpc GetSub(GetRevisionRequest) returns (Message) { option (google.api.http) = {
    get: "/v6/messages/{message_id}/{sub.subfield}" }; }
  rpc Unbound(Message) returns (Message);
}
message GetMessageRequest { string name = 1; }
message Message { string text = 1; }
message GetRevisionRequest {
  message SubMessage { string subfield = 1; }
  string message_id = 1; int64 revision = 2; SubMessage sub = 3;
}
message UpdateMessageRequest { string message_id = 1; Message message = 2; }
message Whole { string message_id = 1; string text = 2; }
message GetUserMessageRequest { string message_id = 1; string user_id = 2; }
"""


@pytest.mark.parametrize(
    ("method", "target", "body", "rpc", "request_"),
    [
        ("GET", "/v1/messages/123456", None, "GetMessage", {"name": "messages/123456"}),
        (
            "GET",
            "/v2/messages/123456?revision=2&sub.subfield=foo",
            None,
            "GetMessageRevision",
            {"message_id": "123456", "revision": "2", "sub": {"subfield": "foo"}},
        ),
        (
            "PATCH",
            "/v3/messages/123456",
            {"text": "Hi!"},
            "UpdateMessage",
            {"message_id": "123456", "message": {"text": "Hi!"}},
        ),
        (
            "PATCH",
            "/v4/messages/123456",
            {"text": "Hi!"},
            "UpdateMessageWhole",
            {"message_id": "123456", "text": "Hi!"},
        ),
        ("GET", "/v5/messages/123456", None, "GetUserMessage", {"message_id": "123456"}),
        (
            "GET",
            "/v5/users/me/messages/123456",
            None,
            "GetUserMessage",
            {"message_id": "123456", "user_id": "me"},
        ),
        ("GET", "/v6/messages/1/x", None, "GetSub", {"message_id": "1", "sub": {"subfield": "x"}}),
    ],
)
def test_example_of_the_specification(method: str, target: str, body: Any, rpc: str, request_: dict[str, Any]) -> None:
    name, message = send(compile_service("spec.v1", SPEC), method, target, body)
    assert name == rpc
    assert json_format.MessageToDict(message, preserving_proto_field_name=True) == request_


def test_method_without_annotation_has_no_route() -> None:
    assert "Unbound" not in {route.method.name for route in transcoding.routes(compile_service("spec.v1", SPEC))}


KINDS = """
service S {
  rpc Query(Kinds) returns (Kinds) { option (google.api.http) = { get: "/q" }; }
  rpc Body(Kinds) returns (Kinds) { option (google.api.http) = { post: "/b" body: "*" }; }
  rpc Path(Kinds) returns (Kinds) { option (google.api.http) = { get: "/p/{i32}/{flag}/{colour}/{sub.word}" }; }
  rpc SubBody(Kinds) returns (Kinds) { option (google.api.http) = {
    put: "/s/{text}" body: "sub" response_body: "sub" }; }
  rpc ListBody(Kinds) returns (Kinds) { option (google.api.http) = { put: "/l" body: "subs" response_body: "subs" }; }
  rpc Custom(Kinds) returns (Kinds) { option (google.api.http) = { custom { kind: "LINK" path: "/c/{rest=**}" } }; }
  rpc Star(Kinds) returns (Kinds) { option (google.api.http) = { custom { kind: "*" path: "/any" } }; }
}
enum Colour { COLOUR_UNSPECIFIED = 0; COLOUR_RED = 1; }
message Sub { string word = 1; int32 count_of_it = 2; Sub inner = 3; }
message Kinds {
  int32 i32 = 1; int64 i64 = 2; uint32 u32 = 3; uint64 u64 = 4; float f32 = 5; double f64 = 6; bool flag = 7;
  string text = 8; bytes data = 9; Colour colour = 10; Sub sub = 11; optional int64 maybe = 12; string rest = 13;
  repeated int32 numbers = 20; repeated Colour colours = 21; repeated Sub subs = 22; map<string, int32> counts = 23;
  repeated string words = 24; map<int32, Sub> subs_by_number = 25; map<bool, Colour> colours_by_flag = 26;
  google.protobuf.Timestamp time = 30; google.protobuf.Duration span = 31; google.protobuf.FieldMask mask = 32;
  google.protobuf.Struct tree = 33; google.protobuf.Value value = 34; google.protobuf.ListValue list = 35;
  google.protobuf.BoolValue maybe_flag = 36; google.protobuf.Int64Value maybe_number = 37;
  google.protobuf.StringValue maybe_text = 38; google.protobuf.Any any = 39; google.protobuf.NullValue nothing = 41;
  google.protobuf.BytesValue maybe_data = 42; repeated google.protobuf.Timestamp times = 43;
  oneof choice { string left = 50; Sub right = 51; }
}
"""


COLOUR_0 = "COLOUR_UNSPECIFIED"


def kinds() -> Any:
    return compile_service("kinds.v1", KINDS)


def as_dict(message: Message) -> dict[str, Any]:
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


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


def test_every_violation_of_body_query_and_path_comes_at_once() -> None:
    found = violations(kinds(), "PUT", "/s/x?i32=y&flag=maybe&sub.word=z", {"word": 1, "countOfIt": "x", "more": 1})
    assert set(found) == {"sub.word", "sub.count_of_it", "sub.more", "i32", "flag"}
    assert violations(kinds(), "GET", "/p/x/yes/RED/w?u32=-1").keys() == {"u32", "i32", "flag", "colour"}


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
    route = next(route for route in transcoding.routes(kinds()) if route.method.name == name)
    assert json.loads(route.answer(message)) == [
        {"word": "a", "countOfIt": 0},
        {"word": "b", "countOfIt": 0},
    ]
    assert violations(kinds(), "PUT", "/l", {}) == {"subs": "must be a JSON array (got {})"}


def test_response_body_sends_one_field_or_null() -> None:
    route = next(route for route in transcoding.routes(kinds()) if route.method.name == "SubBody")
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


def test_answer_prints_zero_values_and_long_integers_as_text() -> None:
    route = next(route for route in transcoding.routes(kinds()) if route.method.name == "Query")
    message = message_factory.GetMessageClass(route.method.output_type)()
    message.i64, message.f64, message.text = 2**60, float("nan"), "é"
    raw = route.answer(message)
    printed = json.loads(raw)
    assert (printed["i64"], printed["f64"], printed["text"]) == (str(2**60), "NaN", "é")
    assert (printed["i32"], printed["numbers"], printed["counts"], printed["colour"]) == (
        0,
        [],
        {},
        "COLOUR_UNSPECIFIED",
    )
    assert "sub" not in printed and "maybe" not in printed
    assert "é".encode() in raw


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
        list(transcoding.routes(service))


DATASETS = dataset_service_pb2.DESCRIPTOR.services_by_name["DatasetService"]
TRAINER = trainer_service_pb2.DESCRIPTOR.services_by_name["TrainerService"]
DATASET = "/v1/projects/p/datasets/d"


@pytest.mark.parametrize(
    ("target", "body", "paths"),
    [
        (DATASET, {"displayName": "x"}, ["display_name"]),
        (DATASET, {"displayName": "", "labels": {"a": "b"}}, ["display_name", "labels"]),
        (DATASET, {"labels": None}, ["labels"]),
        (DATASET, {}, []),
        (f"{DATASET}?updateMask=labels", {"displayName": "x"}, ["labels"]),
        (f"{DATASET}?update_mask=display_name", {"displayName": "x", "labels": {}}, ["display_name"]),
        # What a caller reads and sends back: what the server alone sets, and the etag, are not changed.
        (
            DATASET,
            {"name": "projects/p/datasets/d", "displayName": "x", "createTime": "2026-01-31T10:00:00Z", "etag": "e"},
            ["display_name"],
        ),
    ],
)
def test_update_mask_comes_from_query_or_from_the_fields_in_the_body(target: str, body: Any, paths: list[str]) -> None:
    message = send(DATASETS, "PATCH", target, body)[1]
    assert isinstance(message, dataset_service_pb2.UpdateDatasetRequest)
    assert list(message.update_mask.paths) == paths
    assert message.dataset.name == "projects/p/datasets/d"
    assert message.dataset.etag == body.get("etag", "")


def test_update_refuses_another_name_in_the_body() -> None:
    assert violations(DATASETS, "PATCH", DATASET, {"name": "projects/p/datasets/e"}).keys() == {"dataset.name"}


def test_nested_mask_goes_down_messages_and_stops_at_maps() -> None:
    service = compile_service(
        "nested.v1",
        """
        service S { rpc Update(R) returns (M) { option (google.api.http) = { patch: "/v1/m" body: "m" }; } }
        message R { M m = 1; google.protobuf.FieldMask mask = 2; }
        message M { string a = 1; M inner = 2; map<string, string> labels = 3; google.protobuf.Struct tree = 4;
          repeated M many = 5; string made = 6 [(google.api.field_behavior) = OUTPUT_ONLY]; }
        """,
    )
    body = {"inner": {"a": "x", "inner": {}, "made": "y"}, "labels": {"k": "v"}, "tree": {"x": 1}, "many": [{"a": "x"}]}
    message: Any = send(service, "PATCH", "/v1/m", body)[1]
    assert list(message.mask.paths) == ["inner.a", "inner.inner", "labels", "tree", "many"]


@pytest.mark.parametrize("service", [DATASETS, TRAINER], ids=lambda service: service.name)
def test_every_annotation_of_the_contract_can_be_served(service: Any) -> None:
    router: Router[Route] = Router()
    for route in transcoding.routes(service):
        router.add(route.http_method, route.template, route)
        path = route.template.text
        for variable in route.template.variables:
            inner = path[path.index("{") + 1 : path.index("}")].partition("=")[2]
            path = path.replace(f"{{{variable.field_path}={inner}}}", inner.replace("*", "x"))
        found = router.find(route.http_method, path)
        assert found.value is route


def test_states_of_a_job_list_go_by_name_or_number() -> None:
    message = send(TRAINER, "GET", "/v1/projects/p/trainingJobs?states=JOB_STATE_RUNNING&states=7&pageSize=5")[1]
    assert isinstance(message, trainer_service_pb2.ListTrainingJobsRequest)
    assert list(message.states) == [job_state_pb2.JOB_STATE_RUNNING, job_state_pb2.JOB_STATE_FAILED]
    assert (message.parent, message.page_size) == ("projects/p", 5)


def test_optional_number_in_the_query_is_present_when_it_is_zero() -> None:
    message = send(TRAINER, "GET", "/v1/projects/p/trainingJobs/j/samples?step=0")[1]
    assert isinstance(message, trainer_service_pb2.ListSamplesRequest)
    assert message.HasField("step")
    assert not send(TRAINER, "GET", "/v1/projects/p/trainingJobs/j/samples")[1].HasField("step")


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
    for options in ({}, {"always_print_fields_with_no_presence": True}, {"preserving_proto_field_name": True}):
        again = type(message)()
        assert protojson.fill(again, json_format.MessageToDict(message, **options)) == []
        assert again == message


@given(st.text())
def test_no_query_breaks_reading(text: str) -> None:
    with contextlib.suppress(InvalidArgument, UnicodeEncodeError):
        send(kinds(), "GET", "/q?" + text.replace("?", ""))
