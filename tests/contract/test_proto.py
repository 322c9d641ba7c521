"""The contract: generated code is fresh, lint is clean, and each RPC and field says what a client must know."""

from __future__ import annotations

import filecmp
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.api import annotations_pb2, field_behavior_pb2, resource_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor, MethodDescriptor, ServiceDescriptor
from rlhf.dataset.v1 import dataset_service_pb2
from rlhf.event.v1 import (
    checkpoint_changed_pb2,
    dataset_version_created_pb2,
    training_job_changed_pb2,
    training_job_deleted_pb2,
    training_job_warned_pb2,
)
from rlhf.trainer.v1 import trainer_service_pb2

ROOT = Path(__file__).parents[2]
PROTO = ROOT / "proto"
SERVICES: list[ServiceDescriptor] = [
    dataset_service_pb2.DESCRIPTOR.services_by_name["DatasetService"],
    trainer_service_pb2.DESCRIPTOR.services_by_name["TrainerService"],
]
METHODS: list[MethodDescriptor] = [method for service in SERVICES for method in service.methods]
EVENTS: list[FileDescriptor] = [
    module.DESCRIPTOR
    for module in (
        checkpoint_changed_pb2,
        dataset_version_created_pb2,
        training_job_changed_pb2,
        training_job_deleted_pb2,
        training_job_warned_pb2,
    )
]
# Served by hand over HTTP, as the comment of each says: bytes go in or come out.
BY_HAND = {"WriteUpload", "DownloadDataset", "DownloadCheckpoint", "DownloadModel"}
# Its first message is the resource as it stands, so that nothing is missed by who comes back.
WITHOUT_CURSOR = {"StreamUploadEvents"}
OUTPUT_ONLY, REQUIRED, OPTIONAL = (
    field_behavior_pb2.FieldBehavior.Value(name) for name in ("OUTPUT_ONLY", "REQUIRED", "OPTIONAL")
)


def option(descriptor: Any, extension: Any) -> Any:
    """The value of one of googleapis' options."""
    return descriptor.GetOptions().Extensions[extension]


def behaviours(field: FieldDescriptor) -> list[int]:
    return list(option(field, field_behavior_pb2.field_behavior))


def rule(method: MethodDescriptor) -> tuple[str, str, str]:
    """Verb, path and body of its HTTP annotation; empty without one."""
    http = option(method, annotations_pb2.http)
    verb = http.WhichOneof("pattern")
    return (verb, getattr(http, verb), http.body) if verb else ("", "", "")


def files(root: Path) -> set[Path]:
    return {path.relative_to(root) for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts}


def test_generated_code_is_fresh(tmp_path: Path) -> None:
    generate = runpy.run_path(str(PROTO / "generate.py"))["generate"]
    generate(tmp_path)
    fresh, checked_in = tmp_path / "rlhf", PROTO / "gen" / "rlhf"
    assert files(fresh) == files(checked_in)
    differ = [str(path) for path in files(fresh) if not filecmp.cmp(fresh / path, checked_in / path, shallow=False)]
    assert not differ, "run `python proto/generate.py`"


def test_generating_that_fails_leaves_the_old_code(tmp_path: Path) -> None:
    shutil.copytree(PROTO, tmp_path / "proto", ignore=shutil.ignore_patterns("gen"))
    (tmp_path / "proto" / "rlhf" / "type" / "v1" / "bad.proto").write_text("syntax = wrong")
    (tmp_path / "gen" / "rlhf").mkdir(parents=True)
    (tmp_path / "gen" / "rlhf" / "old_pb2.py").touch()
    done = subprocess.run(
        [sys.executable, tmp_path / "proto" / "generate.py", tmp_path / "gen"], capture_output=True, check=False
    )
    assert done.returncode != 0
    assert files(tmp_path / "gen") == {Path("rlhf/old_pb2.py")}


def test_lint_is_clean() -> None:
    buf = Path(sys.executable).with_name("buf")
    done = subprocess.run([buf, "lint"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.full_name)
def test_every_call_has_a_route_or_is_served_by_hand(method: MethodDescriptor) -> None:
    verb, path, _ = rule(method)
    if method.name in BY_HAND:
        assert not verb
        assert "Over HTTP:" in comment_of(method.name)
        assert method.client_streaming or method.server_streaming
    else:
        assert verb, "no google.api.http annotation"
        assert path.startswith("/v1/")


def comment_of(method: str) -> str:
    """The comment above an rpc in its .proto, on one line."""
    for path in PROTO.glob("rlhf/**/*_service.proto"):
        found = re.search(rf"((?:^ *//.*\n)+) *rpc {method}\(", path.read_text(), re.MULTILINE)
        if found:
            return " ".join(line.strip().removeprefix("//").strip() for line in found[1].splitlines())
    return ""


def test_routes_are_distinct() -> None:
    routes = [(verb, re.sub(r"\{[^}=]*=([^}]*)\}", r"\1", path)) for verb, path, _ in map(rule, METHODS) if verb]
    assert len(routes) == len(set(routes))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.full_name)
def test_verbs_mean_what_they_say(method: MethodDescriptor) -> None:
    verb, _, body = rule(method)
    expected = {"Get": "get", "List": "get", "Stream": "get", "Delete": "delete", "Update": "patch"}
    for prefix, wanted in expected.items():
        if method.name.startswith(prefix):
            assert (verb, bool(body)) == (wanted, wanted == "patch")
    if method.name.startswith(("Create", "Import", "Cancel", "Commit")):
        assert verb == "post"


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.full_name)
def test_the_fields_of_a_route_exist(method: MethodDescriptor) -> None:
    _, path, body = rule(method)
    for name in re.findall(r"\{([^}=]+)", path):
        message: Descriptor | None = method.input_type
        for part in name.split("."):
            assert message is not None
            message = message.fields_by_name[part].message_type
    if body not in ("", "*"):
        assert body in method.input_type.fields_by_name


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.full_name)
def test_each_request_field_says_whether_it_is_needed(method: MethodDescriptor) -> None:
    if method.client_streaming:
        return
    for field in method.input_type.fields:
        assert behaviours(field) in ([REQUIRED], [OPTIONAL]), field.full_name
        if field.name in ("name", "parent"):
            assert behaviours(field) == [REQUIRED]
            reference = option(field, resource_pb2.resource_reference)
            assert reference.type or reference.child_type, field.full_name


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.full_name)
def test_standard_calls_have_standard_fields(method: MethodDescriptor) -> None:
    request = method.input_type.fields_by_name
    if method.name.startswith("List") and "parent" in request:
        assert {"page_size", "page_token"} <= set(request)
        assert "next_page_token" in method.output_type.fields_by_name
    if method.name in ("CreateDataset", "CreateTrainingJob", "ImportModel"):
        assert {"request_id", "validate_only"} <= set(request)
    if method.name.startswith("Get"):
        assert list(request) == ["name"]


@pytest.mark.parametrize("method", [m for m in METHODS if m.server_streaming], ids=lambda m: m.full_name)
def test_one_word_for_what_is_followed(method: MethodDescriptor) -> None:
    """`Stream` of a resource, `Download` of bytes, and the path says the same."""
    if method.name in BY_HAND:
        assert method.name.startswith("Download")
    else:
        assert method.name.startswith("Stream")
        kind = re.sub("Job|Upload", "", method.name)
        assert rule(method)[1].endswith(f":{kind[0].lower()}{kind[1:]}")


@pytest.mark.parametrize("method", [m for m in METHODS if m.server_streaming and rule(m)[0]], ids=lambda m: m.full_name)
def test_a_stream_that_resumes_has_one_cursor(method: MethodDescriptor) -> None:
    """`after_X` in the request, `last_X` in the answer: by this the gateway knows it."""
    after = [field for field in method.input_type.fields if field.name.startswith("after_")]
    last = [field for field in method.output_type.fields if field.name.startswith("last_")]
    assert len(after) <= 1
    assert [f"after_{field.name.removeprefix('last_')}" for field in last] == [field.name for field in after]
    assert all(field.cpp_type == FieldDescriptor.CPPTYPE_INT64 and not field.is_repeated for field in after + last)
    if method.name not in WITHOUT_CURSOR:
        assert after and "stored_only" in method.input_type.fields_by_name
    assert len(method.output_type.fields) > len(last), "a message without anything but its cursor is a heartbeat"
    taken = {"error", "id", "result"} & set(method.output_type.fields_by_name)
    assert not taken, "over HTTP these words tell a failure or answer a command"


def resources() -> Iterator[Descriptor]:
    for file in {method.input_type.file.pool.FindFileByName(name) for method in METHODS for name in imports(method)}:
        for message in file.message_types_by_name.values():
            if option(message, resource_pb2.resource).type:
                yield message


def imports(method: MethodDescriptor) -> list[str]:
    return [dependency.name for dependency in method.input_type.file.dependencies if "rlhf/" in dependency.name]


def test_each_resource_field_says_who_writes_it() -> None:
    found = list(resources())
    assert len(found) >= 6
    for message in found:
        assert message.fields[0].name == "name"
        pattern = option(message, resource_pb2.resource).pattern
        assert all(one.startswith("projects/{project}/") for one in pattern)
        for field in message.fields:
            assert behaviours(field), f"{field.full_name} says neither OUTPUT_ONLY, REQUIRED nor OPTIONAL"
            if field.name.endswith("_time") or field.name == "state":
                assert OUTPUT_ONLY in behaviours(field), field.full_name


def test_units_are_in_names() -> None:
    """Of numbers that have one; bare words for size or time leave the reader guessing."""
    bare = re.compile(r"^size$|(^|_)(timeout|duration|interval|offset|latency)$")
    for method in METHODS:
        for field in (*method.input_type.fields, *method.output_type.fields):
            if field.name != "page_size" and field.cpp_type in (
                FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_DOUBLE,
            ):  # fmt: skip
                assert not bare.search(field.name), field.full_name


def test_one_event_a_file() -> None:
    for file in EVENTS:
        (name,) = file.message_types_by_name
        assert file.name == f"rlhf/event/v1/{re.sub(r'(?<!^)(?=[A-Z])', '_', name).lower()}.proto"
    assert len(EVENTS) == len(list((PROTO / "rlhf" / "event" / "v1").glob("*.proto")))


def test_the_streams_events_have_their_subject() -> None:
    from services.mesh.events.bus import SUBJECTS

    for file in EVENTS:
        (message,) = file.message_types_by_name.values()
        assert message.full_name.startswith(SUBJECTS.removesuffix(">"))
