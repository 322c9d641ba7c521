"""The client is what the contract says: every RPC, every message type right, one source for both kinds."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path

import pytest
from google.protobuf.descriptor import MethodDescriptor

import services.client
from services.client import AsyncClient, Client, unasync
from services.client._async.jobs import AsyncJobs, JobMessages
from services.mesh import catalog

HERE = Path(unasync.__file__).parent
SERVICES = tuple(service for name in catalog.SERVICES for service in catalog.descriptors(name))
METHODS: dict[str, MethodDescriptor] = {method.name: method for service in SERVICES for method in service.methods}
RESOURCES = [name for name, value in vars(Client(server="x:1", token="x")).items() if hasattr(value, "_calls")]


def calls() -> list[tuple[str, str]]:
    """(RPC, source of the reply's type) of every call that the client makes."""
    found = []
    for path in (HERE / "_async").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            first = node.args[0] if isinstance(node, ast.Call) and len(node.args) > 2 else None
            if isinstance(node, ast.Call) and isinstance(first, ast.Constant) and first.value in METHODS:
                found.append((str(first.value), ast.unparse(node.args[2])))
    return found


def job_kinds() -> list[JobMessages]:
    """Those of the namespaces of jobs, whose RPCs are called by their noun."""
    client = AsyncClient(server="x:1", token="x")
    return [value.kind for value in vars(client).values() if isinstance(value, AsyncJobs)]


def test_what_is_checked_in_is_generated_from_the_source() -> None:
    made = unasync.made()
    checked_in = {path.name: path.read_text() for path in (HERE / "_sync").glob("*.py")}
    assert checked_in == made, "run `python -m services.client.unasync`"


def test_every_rpc_of_the_contract_is_reached() -> None:
    verbs = ("Get", "Cancel", "Delete")
    by_noun = {f"{verb}{kind.noun}" for kind in job_kinds() for verb in verbs} | {f"List{k.noun}s" for k in job_kinds()}
    streams = {"StreamJobEvents", "StreamMetrics", "StreamLogs", "ListSamples"}
    assert {rpc for rpc, _ in calls()} | by_noun | streams == set(METHODS)
    for kind in job_kinds():
        assert {METHODS[f"{verb}{kind.noun}"].output_type.full_name for verb in ("Get", "Cancel")} == {
            kind.job.DESCRIPTOR.full_name
        }
        for rpc in streams | {f"List{kind.noun}s"}:
            assert METHODS[rpc].input_type is kind.request(rpc).DESCRIPTOR, rpc
            assert METHODS[rpc].output_type is kind.response(rpc).DESCRIPTOR, rpc


def test_a_reply_has_the_type_of_its_rpc() -> None:
    """`reply`, a variable, is set the line before to the same word."""
    for rpc, reply in calls():
        if reply != "reply":
            expected = METHODS[rpc].output_type.name
            assert reply.rpartition(".")[2] == expected, rpc


def test_both_kinds_have_the_same_members() -> None:
    asynchronous, synchronous = AsyncClient(server="x:1", token="x"), Client(server="x:1", token="x")
    assert len(RESOURCES) == 8
    for name in RESOURCES:
        theirs, ours = getattr(asynchronous, name), getattr(synchronous, name)
        members = [member for member in dir(theirs) if not member.startswith("_") and member != "kind"]
        assert members == [member for member in dir(ours) if not member.startswith("_") and member != "kind"]
        for member in members:
            parameters = [list(inspect.signature(getattr(each, member)).parameters) for each in (theirs, ours)]
            assert parameters[0] == parameters[1], f"{name}.{member}"


@pytest.mark.parametrize("name", services.client.__all__)
def test_what_is_exported_is_there(name: str) -> None:
    assert getattr(services.client, name).__name__ == name


def test_the_public_import_is_that_of_the_contract() -> None:
    public = importlib.import_module("rlhf.client")
    assert public.__all__ == services.client.__all__
    assert all(getattr(public, name) is getattr(services.client, name) for name in public.__all__)
