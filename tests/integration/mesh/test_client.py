"""The calling side: deadlines, what is tried again and what never is, reconnecting."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from rlhf.dataset.v1 import dataset_service_pb2 as pb
from rlhf.dataset.v1.dataset_pb2 import Dataset
from rlhf.dataset.v1.dataset_service_pb2_grpc import (
    DatasetServiceServicer,
    DatasetServiceStub,
    add_DatasetServiceServicer_to_server,
)

from services.mesh import identity
from services.mesh.errors import DeadlineExceeded, NotFound, Unavailable
from services.mesh.rpc import client
from services.mesh.rpc.server import Server
from tests.fix_member import mesh_settings


class Flaky(DatasetServiceServicer):
    """Counts what arrives, carries it out, and says UNAVAILABLE the first `failures` times all the same."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.calls: list[Any] = []
        self.remaining_seconds: list[float | None] = []

    async def _answer(self, request: Any, context: Any) -> Dataset:
        self.calls.append(request)
        self.remaining_seconds.append(context.time_remaining())
        if len(self.calls) <= self.failures:
            raise Unavailable("DATABASE_UNAVAILABLE", "not now")
        return Dataset(name="projects/p/datasets/d")

    GetDataset = CreateDataset = UpdateDataset = DeleteDataset = DeleteUpload = _answer  # pyright: ignore

    async def ListDatasets(self, request: Any, context: Any) -> pb.ListDatasetsResponse:
        await self._answer(request, context)
        return pb.ListDatasetsResponse()

    async def StreamUploadEvents(self, request: Any, context: Any) -> AsyncIterator[pb.StreamUploadEventsResponse]:
        yield pb.StreamUploadEventsResponse()
        await self._answer(request, context)
        raise NotFound("UPLOAD_NOT_FOUND", "gone")


async def serve(home: Path, servicer: Flaky, listen: str = "127.0.0.1:0") -> Server:
    server = Server("dataset", mesh_settings(home, listen=listen))
    server.serve("rlhf.dataset.v1.DatasetService", lambda s: add_DatasetServiceServicer_to_server(servicer, s))
    await server.start()
    return server


@pytest.fixture
async def flaky(home: Path) -> AsyncIterator[tuple[Flaky, DatasetServiceStub]]:
    servicer = Flaky()
    server = await serve(home, servicer)
    async with client.connect(f"127.0.0.1:{server.port}", identity.read_token(home / "token")) as channel:
        yield servicer, DatasetServiceStub(channel)
    await server.stop()


async def test_a_read_is_tried_again(flaky: tuple[Flaky, DatasetServiceStub]) -> None:
    servicer, stub = flaky
    servicer.failures = 2
    await client.call(stub.GetDataset(pb.GetDatasetRequest(name="n")))
    assert len(servicer.calls) == 3
    servicer.calls.clear()
    await client.call(stub.ListDatasets(pb.ListDatasetsRequest(parent="p")))
    assert len(servicer.calls) == 3


async def test_a_create_is_tried_again_as_the_same_request(flaky: tuple[Flaky, DatasetServiceStub]) -> None:
    servicer, stub = flaky
    servicer.failures = 2
    request = pb.CreateDatasetRequest(parent="projects/p")
    await client.call(stub.CreateDataset(request))
    assert len(servicer.calls) == 3
    (request_id,) = {call.request_id for call in servicer.calls}
    assert uuid.UUID(request_id).version == 4
    assert request.request_id == ""  # the caller's message is the caller's
    await client.call(stub.CreateDataset(request))
    assert servicer.calls[-1].request_id != request_id


async def test_the_callers_request_id_stays(flaky: tuple[Flaky, DatasetServiceStub]) -> None:
    servicer, stub = flaky
    await client.call(stub.CreateDataset(pb.CreateDatasetRequest(request_id="mine")))
    assert servicer.calls[0].request_id == "mine"


async def test_what_may_have_been_done_is_not_done_twice(flaky: tuple[Flaky, DatasetServiceStub]) -> None:
    servicer, stub = flaky
    servicer.failures = 100
    for method, request in (
        (stub.UpdateDataset, pb.UpdateDatasetRequest()),
        (stub.DeleteDataset, pb.DeleteDatasetRequest()),
        (stub.DeleteUpload, pb.DeleteUploadRequest()),
    ):
        servicer.calls.clear()
        with pytest.raises(Unavailable, match="not now"):
            await client.call(method(request))  # pyright: ignore[reportArgumentType]
        assert len(servicer.calls) == 1


async def test_it_gives_up_in_the_end(flaky: tuple[Flaky, DatasetServiceStub]) -> None:
    servicer, stub = flaky
    servicer.failures = 100
    started = time.monotonic()
    with pytest.raises(Unavailable, match="not now"):
        await client.call(stub.GetDataset(pb.GetDatasetRequest()))
    assert len(servicer.calls) == 6
    assert time.monotonic() - started < 6


async def test_the_tries_share_one_deadline(flaky: tuple[Flaky, DatasetServiceStub]) -> None:
    servicer, stub = flaky
    servicer.failures = 100
    started = time.monotonic()
    with pytest.raises((Unavailable, DeadlineExceeded)):
        await client.call(stub.GetDataset(pb.GetDatasetRequest(), timeout=0.5))
    assert time.monotonic() - started < 0.7
    remaining = [seconds for seconds in servicer.remaining_seconds if seconds is not None]
    assert remaining == sorted(remaining, reverse=True)


async def test_a_unary_call_has_a_deadline_and_a_stream_has_none(flaky: tuple[Flaky, DatasetServiceStub]) -> None:
    servicer, stub = flaky
    await client.call(stub.GetDataset(pb.GetDatasetRequest()))
    with pytest.raises(NotFound):
        async for _ in client.stream(stub.StreamUploadEvents(pb.StreamUploadEventsRequest())):
            pass
    unary, stream = servicer.remaining_seconds
    assert unary is not None
    assert 25 < unary <= client.DEFAULT_DEADLINE_SECONDS
    assert stream is None


async def test_a_call_that_is_abandoned_is_cancelled(home: Path) -> None:
    ended = asyncio.Event()

    class Slow(Flaky):
        async def GetDataset(self, request: Any, context: Any) -> Dataset:
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()
            return Dataset()

    server = await serve(home, Slow())
    async with client.connect(f"127.0.0.1:{server.port}", identity.read_token(home / "token")) as channel:
        task = asyncio.create_task(client.call(DatasetServiceStub(channel).GetDataset(pb.GetDatasetRequest())))
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.wait_for(ended.wait(), 5)
    await server.stop()


async def test_a_stream_that_is_abandoned_is_cancelled(flaky: tuple[Flaky, DatasetServiceStub]) -> None:
    _, stub = flaky
    replies = stub.StreamUploadEvents(pb.StreamUploadEventsRequest())
    stream = client.stream(replies)
    await anext(stream)
    await stream.aclose()
    assert replies.cancelled()


async def test_it_is_back_soon_after_the_server_is(home: Path) -> None:
    server = await serve(home, Flaky())
    address = f"127.0.0.1:{server.port}"
    async with client.connect(address, identity.read_token(home / "token")) as channel:
        stub = DatasetServiceStub(channel)
        await client.call(stub.GetDataset(pb.GetDatasetRequest()))
        await server.stop()
        pending = asyncio.create_task(client.call(stub.GetDataset(pb.GetDatasetRequest())))
        with pytest.raises(Unavailable):  # not repeatable, so told at once
            await client.call(stub.UpdateDataset(pb.UpdateDatasetRequest()))
        await asyncio.sleep(1)
        restarted = await serve(home, Flaky(), address)
        await asyncio.wait_for(pending, 3)
        await client.call(stub.UpdateDataset(pb.UpdateDatasetRequest()))
        await restarted.stop()


async def test_nobody_listening_is_unavailable() -> None:
    async with client.connect("127.0.0.1:1", "token") as channel:
        started = time.monotonic()
        with pytest.raises(Unavailable):
            await client.call(DatasetServiceStub(channel).DeleteDataset(pb.DeleteDatasetRequest()))
        assert time.monotonic() - started < 2


async def test_tls(home: Path) -> None:
    """With a certificate of our own making, which the client trusts and others do not."""
    certificate, key = home / "certificate.pem", home / "key.pem"
    process = await asyncio.create_subprocess_exec(
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"),
        *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
        *("-keyout", str(key), "-out", str(certificate)),
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert await process.wait() == 0
    settings = mesh_settings(home, tls_certificate_file=certificate, tls_key_file=key)
    server = Server("dataset", settings)
    server.serve("rlhf.dataset.v1.DatasetService", lambda s: add_DatasetServiceServicer_to_server(Flaky(), s))
    await server.start()
    token = identity.read_token(home / "token")
    async with client.connect(f"localhost:{server.port}", token, certificate) as channel:
        await client.call(DatasetServiceStub(channel).GetDataset(pb.GetDatasetRequest()))
    async with grpc.aio.insecure_channel(f"localhost:{server.port}") as plain:
        with pytest.raises(grpc.aio.AioRpcError):
            await DatasetServiceStub(plain).GetDataset(pb.GetDatasetRequest(), timeout=2)
    await server.stop()
