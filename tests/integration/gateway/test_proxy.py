"""gRPC through the gateway: all four call shapes, metadata, trailers, deadlines, cancellation both ways, health."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from rlhf.dataset.v1 import dataset_pb2, dataset_service_pb2, dataset_service_pb2_grpc

from services.mesh.errors import InvalidArgument
from services.mesh.rpc.client import map_error
from services.mesh.rpc.sending import send

TOKEN = "the-token-of-the-test"
METADATA = (("authorization", f"Bearer {TOKEN}"),)
MIB = 1024 * 1024


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> Any:
    return dataset_service_pb2_grpc.DatasetServiceStub(channel)


def get(name: str) -> dataset_service_pb2.GetDatasetRequest:
    return dataset_service_pb2.GetDatasetRequest(name=f"projects/p/datasets/{name}")


def write(count: int, name: str = "u", size: int = MIB) -> AsyncIterator[Any]:
    async def requests() -> AsyncIterator[Any]:
        for index in range(count):
            yield dataset_service_pb2.WriteUploadRequest(name="" if index else name, chunk=bytes([index]) * size)

    return requests()


async def test_unary(stub: Any) -> None:
    reply = await stub.GetDataset(get("d"), metadata=METADATA)
    assert reply == dataset_pb2.Dataset(name="projects/p/datasets/d", format="messages")


async def test_client_stream_arrives_in_order(stub: Any, seen: Any) -> None:
    reply = await stub.WriteUpload(write(20), metadata=METADATA)
    assert reply.received_bytes == 20 * MIB
    assert bytes(seen.uploaded[::MIB]) == bytes(range(20))


async def test_server_stream(stub: Any) -> None:
    request = dataset_service_pb2.StreamUploadEventsRequest(name="u")
    replies = [reply.upload.received_bytes async for reply in stub.StreamUploadEvents(request, metadata=METADATA)]
    assert replies == [0, 1, 2]


async def test_unknown_shape_is_passed_on_as_both_streams(channel: grpc.aio.Channel) -> None:
    """No method of the contract streams both ways; the proxy passes every stream on so, and this caller uses it so."""
    call = channel.stream_stream("/rlhf.dataset.v1.DatasetService/StreamUploadEvents")(metadata=METADATA)
    await call.write(dataset_service_pb2.StreamUploadEventsRequest(name="u").SerializeToString())
    await call.done_writing()
    assert len([reply async for reply in call]) == 3


async def test_unknown_fields_pass_unread(channel: grpc.aio.Channel, seen: Any) -> None:
    invoke = channel.unary_unary("/rlhf.dataset.v1.DatasetService/DeleteDataset")
    newer = dataset_service_pb2.DeleteDatasetRequest(name="projects/p").SerializeToString() + b"\xfa\x7f\x03new"
    await invoke(newer, metadata=METADATA)
    assert seen.requests[-1].SerializeToString() == newer


async def test_metadata_goes_both_ways(stub: Any, seen: Any) -> None:
    metadata = (*METADATA, ("x-mine", "1"), ("x-mine-bin", b"\x00\xfe"))
    call = stub.GetDataset(get("trailers"), metadata=metadata)
    await call
    assert (seen.metadata[-1]["x-mine"], seen.metadata[-1]["x-mine-bin"]) == ("1", b"\x00\xfe")
    assert seen.metadata[-1]["user-agent"].count("grpc-python") == 1
    assert ("x-first", "1") in tuple(await call.initial_metadata())
    trailing = dict(await call.trailing_metadata())
    assert (trailing["x-last"], trailing["x-last-bin"]) == ("2", b"\x00\xff")


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_a_caller_may_compress(stub: Any, seen: Any, compression: grpc.Compression) -> None:
    reply = await stub.WriteUpload(write(3), metadata=METADATA, compression=compression)
    assert reply.received_bytes == 3 * MIB
    assert bytes(seen.uploaded[::MIB]) == bytes(range(3))
    assert (await stub.GetDataset(get("d"), metadata=METADATA, compression=compression)).format == "messages"


async def test_status_details_arrive(stub: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.GetDataset(get("invalid"), metadata=METADATA)
    error = map_error(refused.value)
    assert isinstance(error, InvalidArgument)
    assert [violation.field for violation in error.violations] == ["field_0", "field_1", "field_2"]


async def test_error_in_mid_stream_comes_after_what_was_sent(stub: Any) -> None:
    replies = []
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        async for reply in stub.StreamUploadEvents(
            dataset_service_pb2.StreamUploadEventsRequest(name="fails"), metadata=METADATA
        ):
            replies.append(reply)
    assert len(replies) == 3
    assert (refused.value.code(), map_error(refused.value).reason) == (grpc.StatusCode.FAILED_PRECONDITION, "BROKEN")


@pytest.mark.parametrize("attempt", range(5))
async def test_refusal_in_mid_upload_reaches_a_client_that_is_still_writing(
    channel: grpc.aio.Channel, attempt: int
) -> None:
    call = channel.stream_unary("/rlhf.dataset.v1.DatasetService/WriteUpload")(metadata=METADATA)
    request = dataset_service_pb2.WriteUploadRequest(name="u", offset_bytes=10**7, chunk=b"x")
    async with asyncio.timeout(10):
        while await send(call, request.SerializeToString()):
            request = dataset_service_pb2.WriteUploadRequest(chunk=b"x" * MIB)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
    assert map_error(refused.value).reason == "WRONG_OFFSET"


async def test_deadline_goes_on_and_ends_the_call(stub: Any, seen: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.GetDataset(get("slow"), metadata=METADATA, timeout=0.5)
    assert refused.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert 0 < seen.deadlines[-1] <= 1
    await asyncio.wait_for(seen.cancelled.wait(), 5)


async def test_call_without_a_deadline_gets_none(stub: Any, seen: Any) -> None:
    await stub.GetDataset(get("d"), metadata=METADATA)
    assert seen.deadlines[-1] is None or seen.deadlines[-1] > 10**6


@pytest.mark.parametrize("streaming", [False, True])
async def test_cancellation_reaches_the_service(stub: Any, seen: Any, streaming: bool) -> None:
    if streaming:
        call = stub.StreamUploadEvents(dataset_service_pb2.StreamUploadEventsRequest(name="endless"), metadata=METADATA)
        await call.read()
    else:
        call = stub.GetDataset(get("slow"), metadata=METADATA)
    await asyncio.wait_for(seen.started.wait(), 5)
    call.cancel()
    await asyncio.wait_for(seen.cancelled.wait(), 5)


async def test_service_that_dies_ends_its_calls(stub: Any, services: Any) -> None:
    call = stub.StreamUploadEvents(dataset_service_pb2.StreamUploadEventsRequest(name="endless"), metadata=METADATA)
    await call.read()
    await services.stop()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        while await call.read() is not grpc.aio.EOF:
            pass
    assert refused.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await asyncio.wait_for(stub.GetDataset(get("d"), metadata=METADATA), 3)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    await services.start()
    async with asyncio.timeout(5):
        while True:
            try:
                await stub.GetDataset(get("d"), metadata=METADATA)
                break
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.05)


async def test_slow_reader_slows_the_service_down(stub: Any, seen: Any) -> None:
    request = dataset_service_pb2.DownloadDatasetRequest(name=f"projects/p/datasets/size-{10**9}/versions/1")
    call = stub.DownloadDataset(request, metadata=METADATA)
    await call.read()
    await asyncio.sleep(1)
    assert seen.sent_bytes < 64 * MIB
    call.cancel()
    await asyncio.wait_for(seen.cancelled.wait(), 5)


async def test_slow_service_slows_the_writer_down(stub: Any, seen: Any) -> None:
    written = 0

    async def endless() -> AsyncIterator[Any]:
        nonlocal written
        yield dataset_service_pb2.WriteUploadRequest(name="stalled")
        while True:
            written += MIB
            yield dataset_service_pb2.WriteUploadRequest(chunk=b"x" * MIB)

    call = stub.WriteUpload(endless(), metadata=METADATA)
    await asyncio.wait_for(seen.started.wait(), 5)
    await asyncio.sleep(1)
    assert written < 64 * MIB
    call.cancel()


@pytest.mark.parametrize("metadata", [(), (("authorization", "Bearer wrong"),), (("authorization", TOKEN),)])
async def test_without_the_token_nothing_reaches_a_service(stub: Any, seen: Any, metadata: Any) -> None:
    calls = [
        lambda: stub.GetDataset(get("d"), metadata=metadata),
        lambda: stub.WriteUpload(write(3), metadata=metadata),
        lambda: stub.StreamUploadEvents(
            dataset_service_pb2.StreamUploadEventsRequest(name="u"), metadata=metadata
        ).read(),
    ]
    for call in calls:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call()
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert not seen.requests and not seen.uploaded


@pytest.mark.parametrize("method", ["/no.such.Service/Get", "/rlhf.dataset.v1.DatasetService/NoSuch", "/x"])
async def test_unknown_method_is_unimplemented(channel: grpc.aio.Channel, method: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await channel.unary_unary(method)(b"", metadata=METADATA)
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_message_over_the_limit_is_refused(stub: Any, seen: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.WriteUpload(write(1, size=5 * MIB), metadata=METADATA)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert not seen.uploaded


async def test_many_calls_at_once(stub: Any) -> None:
    replies = await asyncio.gather(*(stub.GetDataset(get(f"d{n}"), metadata=METADATA) for n in range(300)))
    assert [reply.name for reply in replies] == [f"projects/p/datasets/d{n}" for n in range(300)]


async def test_health_follows_the_service_behind(channel: grpc.aio.Channel, services: Any) -> None:
    health: Any = health_pb2_grpc.HealthStub(channel)

    async def wait_for(service: str, status: int) -> None:
        request = health_pb2.HealthCheckRequest(service=service)
        async with asyncio.timeout(5):
            async for reply in health.Watch(request):
                if reply.status == status:
                    return

    states = health_pb2.HealthCheckResponse
    await wait_for("rlhf.dataset.v1.DatasetService", states.SERVING)
    await services.stop()
    await wait_for("rlhf.dataset.v1.DatasetService", states.NOT_SERVING)
    await wait_for("", states.SERVING)
    await services.start()
    await wait_for("rlhf.dataset.v1.DatasetService", states.SERVING)


async def test_status_of_a_refusal_at_the_door_has_details(stub: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.GetDataset(get("d"))
    details = dict(refused.value.trailing_metadata() or ())["grpc-status-details-bin"]
    info = error_details_pb2.ErrorInfo()
    status_pb2.Status.FromString(details).details[0].Unpack(info)  # type: ignore[arg-type]
    assert info.reason == "NO_TOKEN"


def test_gateway_starts_without_torch_or_a_database() -> None:
    """Its modules alone: what takes long to import, or belongs to a worker, is not among them."""
    program = (
        "import sys, services.gateway.app; print([m for m in ('torch','ray','psycopg','nats') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.strip() == "[]"
