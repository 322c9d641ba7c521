"""A real server: errors and identity for all four call shapes, health, reflection, stopping."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from google.rpc import status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from rlhf.dataset.v1.dataset_service_pb2 import GetDatasetRequest, UpdateDatasetRequest
from rlhf.dataset.v1.dataset_service_pb2_grpc import DatasetServiceStub

from services.mesh import identity
from services.mesh.errors import Aborted, InvalidArgument, NotFound, PlatformError, Violation
from services.mesh.rpc import client
from services.mesh.rpc.interceptors import DETAILS_KEY, resource_of
from tests.fix_member import SHAPES, SHAPES_SERVICE, call_shape, shapes_server, until

TOO_MANY = tuple(Violation(f"training_job.params.field_{i}", "must be 更多 than " + "9" * 60) for i in range(200))


async def act(value: str) -> str:
    match value:
        case "not found":
            raise NotFound("JOB_NOT_FOUND", "there is no job 七", name="projects/p/trainingJobs/j")
        case "invalid":
            raise InvalidArgument([Violation("a.b", "must be set"), Violation("c", "must be more than 0")])
        case "too many":
            raise InvalidArgument(TOO_MANY)
        case "long":
            raise NotFound("LONG", "哈" * 5000, detail="哈" * 5000)
        case "unknown":
            raise ValueError("the password is hunter2")
        case "lost":
            raise Aborted("LEASE_LOST", "held by another")
        case "who":
            principal = identity.current()
            return principal.name if principal else "nobody"
    return value


async def error_of(channel: grpc.aio.Channel, shape: str, value: str) -> PlatformError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call_shape(channel, shape, value)
    return client.map_error(caught.value)


@pytest.fixture
async def server(home: Path):
    async with shapes_server(home, act) as server:
        yield server


@pytest.fixture
async def channel(server, home: Path):
    async with client.connect(f"127.0.0.1:{server.port}", identity.read_token(home / "token")) as channel:
        yield channel


@pytest.fixture
async def bare(server):
    """A foreign client without our options, interceptors or token."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield channel


@pytest.mark.parametrize("shape", SHAPES)
async def test_errors_cross_in_every_shape_after_replies_too(channel: grpc.aio.Channel, shape: str) -> None:
    not_found = await error_of(channel, shape, "not found")
    assert isinstance(not_found, NotFound)
    assert (not_found.reason, str(not_found)) == ("JOB_NOT_FOUND", "there is no job 七")
    assert not_found.metadata == {"name": "projects/p/trainingJobs/j"}
    invalid = await error_of(channel, shape, "invalid")
    assert isinstance(invalid, InvalidArgument)
    assert invalid.violations == (Violation("a.b", "must be set"), Violation("c", "must be more than 0"))
    assert isinstance(await error_of(channel, shape, "lost"), Aborted)


@pytest.mark.parametrize("shape", SHAPES)
async def test_an_unknown_error_tells_nothing(channel: grpc.aio.Channel, shape: str, caplog) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call_shape(channel, shape, "unknown")
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "hunter2" not in repr(caught.value) + str(caught.value.trailing_metadata())
    (record,) = [record for record in caplog.records if record.name == "services.mesh.rpc.interceptors"]
    assert record.exc_info is not None
    assert "hunter2" in str(record.exc_info[1])


@pytest.mark.parametrize("value", ["too many", "long"])
async def test_a_long_status_reaches_a_client_with_the_usual_limits(
    bare: grpc.aio.Channel, home: Path, value: str
) -> None:
    token = (("authorization", f"Bearer {identity.read_token(home / 'token')}"),)
    for shape in SHAPES:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call_shape(bare, shape, value, metadata=token)
        error = client.map_error(caught.value)
        if isinstance(error, InvalidArgument):
            assert error.violations[:20] == TOO_MANY[:20]
            assert error.violations[-1].description.endswith("more")
        else:
            assert isinstance(error, NotFound)
            assert str(error).startswith("哈哈")


@pytest.mark.parametrize("shape", SHAPES)
async def test_only_the_token_opens(bare: grpc.aio.Channel, home: Path, shape: str) -> None:
    token = identity.read_token(home / "token")
    for header in ((), (("authorization", "Bearer wrong"),), (("authorization", token),), (("authorization", ""),)):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call_shape(bare, shape, "x", metadata=header)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert client.map_error(caught.value).reason in ("NO_TOKEN", "WRONG_TOKEN")
        assert token not in str(caught.value)
    replies = await call_shape(bare, shape, "who", metadata=(("authorization", f"Bearer {token}"),))
    assert replies[-1] == "user:owner"


@pytest.mark.parametrize("shape", SHAPES)
async def test_the_client_brings_the_token(channel: grpc.aio.Channel, shape: str) -> None:
    assert (await call_shape(channel, shape, "who"))[-1] == "user:owner"


async def test_each_call_is_authorized_with_its_verb_and_resource(
    channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str, str]] = []
    monkeypatch.setattr(identity, "authorize", lambda who, verb, what: asked.append((who.name, verb, what)))
    for shape in SHAPES:
        await call_shape(channel, shape, "x")
    assert asked == [("user:owner", shape, "") for shape in SHAPES]


def test_the_resource_of_a_request() -> None:
    update = UpdateDatasetRequest()
    update.dataset.name = "projects/p/datasets/d"
    update.update_mask.paths.append("labels")
    assert resource_of(update) == "projects/p/datasets/d"
    assert resource_of(GetDatasetRequest(name="projects/p/datasets/d")) == "projects/p/datasets/d"
    assert resource_of(iter(())) == ""


async def test_health_is_open(bare: grpc.aio.Channel) -> None:
    health = health_pb2_grpc.HealthStub(bare)
    for service in ("", SHAPES_SERVICE):
        request = health_pb2.HealthCheckRequest(service=service)
        assert (await health.Check(request)).status == health_pb2.HealthCheckResponse.SERVING
        watch = health.Watch(request)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()


async def test_reflection_wants_the_token(bare: grpc.aio.Channel, channel: grpc.aio.Channel) -> None:
    async def listed(over: grpc.aio.Channel) -> list[str]:
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(over)  # pyright: ignore[reportArgumentType]
        async for answer in stub.ServerReflectionInfo(iter([request])):
            return [service.name for service in answer.list_services_response.service]
        return []

    assert SHAPES_SERVICE in await listed(channel)
    with pytest.raises(grpc.aio.AioRpcError, match="UNAUTHENTICATED"):
        await listed(bare)


async def test_an_unknown_method_is_unimplemented(channel: grpc.aio.Channel) -> None:
    method = channel.unary_unary(f"/{SHAPES_SERVICE}/Nothing", request_serializer=StringValue.SerializeToString)
    with pytest.raises(PlatformError) as caught:
        await client.call(method(StringValue()))
    assert caught.value.code == "UNIMPLEMENTED"


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_client_that_goes_away_ends_the_handler(home: Path, shape: str) -> None:
    started, ended = asyncio.Event(), asyncio.Event()

    async def endless(value: str) -> str:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return value

    async with (
        shapes_server(home, endless) as server,
        client.connect(f"127.0.0.1:{server.port}", identity.read_token(home / "token")) as channel,
    ):
        task = asyncio.create_task(call_shape(channel, shape, "x"))
        await asyncio.wait_for(started.wait(), 5)
        task.cancel()
        await asyncio.wait_for(ended.wait(), 5)
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_a_taken_port_is_told(server, home: Path) -> None:
    with pytest.raises(RuntimeError, match=f"127.0.0.1:{server.port}"):
        async with shapes_server(home, act, listen=f"127.0.0.1:{server.port}"):
            pass


async def test_the_details_are_a_status(channel: grpc.aio.Channel) -> None:
    """What other languages' libraries expect under this key."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call_shape(channel, "unary_unary", "invalid")
    raw = dict(caught.value.trailing_metadata() or ())[DETAILS_KEY]
    status = status_pb2.Status.FromString(raw if isinstance(raw, bytes) else raw.encode())
    assert status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert [detail.type_url.rpartition(".")[2] for detail in status.details] == ["ErrorInfo", "BadRequest"]


PROGRAM = """
import asyncio, sys
import uvloop
from rlhf.dataset.v1 import dataset_pb2, dataset_service_pb2_grpc
from services.mesh.rpc.server import Server
from services.mesh.settings import Environment, MeshSettings
from services.mesh.telemetry.logs import configure_logging

class Slow(dataset_service_pb2_grpc.DatasetServiceServicer):
    async def GetDataset(self, request, context):
        await asyncio.sleep(0.5)
        return dataset_pb2.Dataset(name=request.name)

async def tell_port():
    while not server.port:
        await asyncio.sleep(0.01)
    print(server.port, flush=True)
    await asyncio.Event().wait()

def build():
    values = {"RLHF_HOME": sys.argv[1], "RLHF_POSTGRES_URL": "unused", "RLHF_NATS_URL": "unused"}
    server = Server("dataset", MeshSettings.read(Environment(values), "dataset"))
    server.serve(
        "rlhf.dataset.v1.DatasetService",
        lambda grpc_server: dataset_service_pb2_grpc.add_DatasetServiceServicer_to_server(Slow(), grpc_server),
    )
    server.add_routine("tell port", tell_port)
    return server

configure_logging("dataset")
server = build()  # outside the event loop, as every __main__ does
uvloop.run(server.run())
"""


async def test_sigterm_lets_calls_finish_and_refuses_new_ones(home: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PROGRAM, str(home)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    port = int(await asyncio.wait_for(process.stdout.readline(), 20))
    async with client.connect(f"127.0.0.1:{port}", identity.read_token(home / "token")) as channel:
        stub = DatasetServiceStub(channel)
        pending = stub.GetDataset(GetDatasetRequest(name="in time"))
        await asyncio.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert (await pending).name == "in time"
    _, errors = await asyncio.wait_for(process.communicate(), 10)
    assert process.returncode == 0, errors.decode()
    assert json.loads(errors.splitlines()[-1])["message"] == "stopped"


async def test_health_says_so_before_the_port_closes(home: Path) -> None:
    async def slow(value: str) -> str:
        await asyncio.sleep(0.5)
        return value

    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(shapes_server(home, slow))
        address = f"127.0.0.1:{server.port}"
        bare = await stack.enter_async_context(grpc.aio.insecure_channel(address))
        channel = await stack.enter_async_context(client.connect(address, identity.read_token(home / "token")))
        watch = health_pb2_grpc.HealthStub(bare).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        pending = asyncio.create_task(call_shape(channel, "unary_unary", "in time"))
        await asyncio.sleep(0.1)
        stopping = asyncio.create_task(server.stop())
        assert (await asyncio.wait_for(watch.read(), 2)).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()
        assert await pending == ["in time"]
        await until(stopping.done)
