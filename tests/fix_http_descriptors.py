"""Services with google.api.http annotations, compiled in memory, and what an HTTP request to one becomes."""

from __future__ import annotations

import functools
import json
import tempfile
from importlib import import_module, util
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, json_format
from google.protobuf.message import Message
from grpc_tools import protoc

from services.gateway.transcoding import transcoder
from services.gateway.transcoding.path_templates import Router
from services.gateway.transcoding.transcoder import Route, parse_query
from services.mesh.errors import InvalidArgument

# Imported so that the pool of descriptors has the files that HEAD imports.
for name in ("any", "duration", "field_mask", "struct", "timestamp", "wrappers"):
    import_module(f"google.protobuf.{name}_pb2")

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
    for route in transcoder.routes(service):
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
