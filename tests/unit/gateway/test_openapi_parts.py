"""The generator on contracts that ours does not need yet: every kind of field, bindings, recursion, clashes."""

from __future__ import annotations

import json
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2
from grpc_tools import protoc
from openapi_spec_validator import OpenAPIV31SpecValidator

from services.gateway.openapi import document as openapi
from tests.fix_http_descriptors import HEAD, KINDS, SPEC

VENDOR = Path(__file__).parents[3] / "proto" / "vendor"


def made(source: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The document of a contract that is this file alone; what is served by hand is left out."""
    monkeypatch.setattr(openapi.static_operations, "by_hand", lambda *_: iter(()))
    with tempfile.TemporaryDirectory() as folder:
        file, output = Path(folder, "some.proto"), Path(folder, "out.binpb")
        file.write_text(HEAD.format(package="some.v1") + source)
        includes = [f"-I{folder}", f"-I{VENDOR}", f"-I{files('grpc_tools') / '_proto'}"]
        flags = ["--include_imports", "--include_source_info", f"--descriptor_set_out={output}"]
        assert protoc.main(["protoc", *includes, *flags, str(file)]) == 0
        found = json.loads(openapi.document(descriptor_pb2.FileDescriptorSet.FromString(output.read_bytes())))
    assert not [error.message for error in OpenAPIV31SpecValidator(found).iter_errors()]
    return found


def test_every_kind_of_field(monkeypatch: pytest.MonkeyPatch) -> None:
    found = made(KINDS, monkeypatch)
    fields = found["components"]["schemas"]["Kinds"]["properties"]
    number = {"minimum": 0, "maximum": 2**32 - 1, "type": "integer", "format": "uint32"}
    assert fields["u32"] == number
    assert fields["u64"]["format"] == "uint64"
    assert {"type": "string", "enum": ["NaN", "Infinity", "-Infinity"]} in fields["f64"]["anyOf"]
    assert fields["data"] == {"type": "string", "contentEncoding": "base64"}
    assert fields["subsByNumber"]["additionalProperties"] == {"$ref": "#/components/schemas/Sub"}
    assert fields["tree"] == {"type": "object", "additionalProperties": True}
    assert fields["any"]["required"] == ["@type"]
    assert fields["value"] == {}
    assert fields["times"]["items"]["format"] == "date-time"
    assert fields["left"]["description"] == "Only one of `left`, `right` is set."
    # A wrapper is its value.
    assert fields["maybeFlag"]["type"] == "boolean"
    assert fields["maybeNumber"]["format"] == "int64"
    assert fields["maybeText"]["type"] == "string"


def test_query_of_nested_messages_ends_even_when_a_message_holds_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    found = made(KINDS, monkeypatch)
    names = {each["name"] for each in found["paths"]["/q"]["get"]["parameters"] if each.get("in") == "query"}
    assert {"i32", "words", "sub.word", "sub.countOfIt", "sub.inner.word", "right.word", "mask", "maybeFlag"} <= names
    assert not {"subs", "counts", "times", "sub", "subsByNumber"} & names


def test_methods_that_openapi_has_no_word_for_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    found = made(KINDS, monkeypatch)
    assert not {"/c/{rest}", "/any"} & set(found["paths"])


def test_one_field_as_body_and_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    found = made(KINDS, monkeypatch)
    operation = found["paths"]["/l"]["put"]
    body = operation["requestBody"]["content"]["application/json"]["schema"]
    answer = operation["responses"]["200"]["content"]["application/json"]["schema"]
    assert body == {"type": "array", "items": {"$ref": "#/components/schemas/SubInput"}}
    assert answer == {"type": "array", "items": {"$ref": "#/components/schemas/Sub"}}


def test_bindings_and_wildcards(monkeypatch: pytest.MonkeyPatch) -> None:
    found = made(SPEC, monkeypatch)
    first = found["paths"]["/v5/messages/{messageId}"]["get"]
    second = found["paths"]["/v5/users/{userId}/messages/{messageId}"]["get"]
    assert (first["operationId"], second["operationId"]) == ("GetUserMessage", "GetUserMessage_1")
    assert [each["name"] for each in first["parameters"] if "in" in each] == ["messageId", "userId"]
    assert "/v1/messages/{name}" in found["paths"]
    whole = found["paths"]["/v4/messages/{messageId}"]["patch"]["requestBody"]["content"]["application/json"]["schema"]
    assert whole == {"$ref": "#/components/schemas/Whole"}


def test_two_messages_of_one_short_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    source = """
    service S { rpc A(M) returns (Both) { option (google.api.http) = { get: "/v1/a" }; } }
    message M { message Sub { string c = 1; } string a = 1; }
    message MSub { string b = 1; }
    message Both { M.Sub one = 1; MSub other = 2; }
    """
    with pytest.raises(ValueError, match="would both be the schema MSub"):
        made(source, monkeypatch)
