"""A dataset and a trainer service that echo or misbehave on demand, a gateway before them, and clients of it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf import empty_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from rlhf.dataset.v1 import dataset_pb2, dataset_service_pb2, dataset_service_pb2_grpc
from rlhf.trainer.v1 import model_pb2, trainer_service_pb2, trainer_service_pb2_grpc
from rlhf.type.v1 import checkpoint_pb2

from services.gateway.app import Gateway, build
from services.gateway.settings import GatewaySettings
from services.mesh.errors import FailedPrecondition, InvalidArgument, NotFound, OutOfRange, Violation
from services.mesh.rpc.instrumentation import Observed
from services.mesh.rpc.interceptors import Errors, Identity
from services.mesh.settings import Environment
from tests.integration.gateway.streaming_trainer import StreamingTrainer, StreamsSeen

TOKEN = "the-token-of-the-test"
AUTHORIZATION = {"authorization": f"Bearer {TOKEN}"}
MIB = 1024 * 1024
BLOCK = hashlib.shake_256(b"block").digest(MIB - 17)  # not a power of two: a shifted block shows


def content(start: int, end: int) -> bytes:
    """The bytes of every download."""
    first, last = start // len(BLOCK), end // len(BLOCK) + 1
    return (BLOCK * (last - first))[start - first * len(BLOCK) : end - first * len(BLOCK)]


@dataclass
class Seen:
    """What reached the services."""

    metadata: list[dict[str, Any]] = field(default_factory=list)
    deadlines: list[float | None] = field(default_factory=list)
    requests: list[Any] = field(default_factory=list)
    started: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    uploaded: bytearray = field(default_factory=bytearray)
    upload_ended: asyncio.Event = field(default_factory=asyncio.Event)
    upload_may_go_on: asyncio.Event = field(default_factory=asyncio.Event)
    sent_bytes: int = 0

    def note(self, request: Any, context: Any) -> None:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        self.deadlines.append(context.time_remaining())

    async def hang(self) -> None:
        self.started.set()
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


class DatasetServicer(dataset_service_pb2_grpc.DatasetServiceServicer):
    """The last part of a name says how to behave."""

    def __init__(self, seen: Seen) -> None:
        self.seen = seen

    async def GetDataset(self, request: Any, context: Any) -> Any:
        self.seen.note(request, context)
        behaviour = request.name.rpartition("/")[2]
        if behaviour == "missing":
            raise NotFound("DATASET_NOT_FOUND", f"{request.name} does not exist", name=request.name)
        if behaviour == "invalid":
            raise InvalidArgument([Violation(f"field_{n}", f"is wrong {n}") for n in range(3)])
        if behaviour == "crash":
            raise ZeroDivisionError("secret inside")
        if behaviour == "slow":
            await self.seen.hang()
        if behaviour == "trailers":
            await context.send_initial_metadata((("x-first", "1"),))
            context.set_trailing_metadata((("x-last", "2"), ("x-last-bin", b"\x00\xff")))
        return dataset_pb2.Dataset(name=request.name, format="messages")

    async def CreateDataset(self, request: Any, context: Any) -> Any:
        self.seen.note(request, context)
        request.dataset.name = f"{request.parent}/datasets/{request.dataset_id}"
        return request.dataset

    async def UpdateDataset(self, request: Any, context: Any) -> Any:
        self.seen.note(request, context)
        return request.dataset

    async def DeleteDataset(self, request: Any, context: Any) -> Any:
        self.seen.note(request, context)
        return empty_pb2.Empty()

    async def ListDatasets(self, request: Any, context: Any) -> Any:
        self.seen.note(request, context)
        return dataset_service_pb2.ListDatasetsResponse()

    async def WriteUpload(self, request_iterator: AsyncIterator[Any], context: Any) -> Any:
        name, ended = "", False
        try:
            async for request in request_iterator:
                if not name:
                    name = request.name
                    self.seen.note(request, context)
                    if request.offset_bytes > 10**6:
                        raise OutOfRange("WRONG_OFFSET", "go on at 0", received_bytes=0)
                if name.endswith("stalled"):
                    self.seen.started.set()
                    await self.seen.upload_may_go_on.wait()
                assert len(request.chunk) <= MIB
                self.seen.uploaded += request.chunk
            ended = True
        finally:
            if ended:
                self.seen.upload_ended.set()
        return dataset_pb2.Upload(name=name, received_bytes=len(self.seen.uploaded))

    async def StreamUploadEvents(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.seen.note(request, context)
        for count in range(3):
            yield dataset_service_pb2.StreamUploadEventsResponse(upload=dataset_pb2.Upload(received_bytes=count))
        if request.name.endswith("fails"):
            raise FailedPrecondition("BROKEN", "in mid-stream")
        if request.name.endswith("endless"):
            await self.seen.hang()

    async def GetDatasetVersion(self, request: Any, context: Any) -> Any:
        self.seen.note(request, context)
        name = request.name.replace("latest", "3")
        size = 10_000_000 if not name.split("/")[3].startswith("size-") else int(name.split("/")[3][5:])
        return dataset_pb2.DatasetVersion(name=name, sha256="ab" * 32, size_bytes=size)

    async def DownloadDataset(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.seen.note(request, context)
        version = await self.GetDatasetVersion(request, context)
        end = version.size_bytes - (5 if request.name.endswith("9") else 0)  # version 9 stops early
        try:
            for start in range(request.offset_bytes, end, MIB):
                chunk = content(start, min(end, start + MIB))
                yield dataset_service_pb2.DownloadDatasetResponse(offset_bytes=start, chunk=chunk)
                self.seen.sent_bytes += len(chunk)
        except (asyncio.CancelledError, GeneratorExit):
            self.seen.cancelled.set()
            raise


class TrainerServicer(StreamingTrainer, trainer_service_pb2_grpc.TrainerServiceServicer):
    def __init__(self, seen: Seen, streams: StreamsSeen) -> None:
        self.seen = seen
        self.streams = streams

    async def GetCheckpoint(self, request: Any, context: Any) -> Any:
        self.seen.note(request, context)
        files = [
            checkpoint_pb2.ArtifactFile(path="model.safetensors", size_bytes=3_000_000, sha256="cd" * 32),
            checkpoint_pb2.ArtifactFile(path='deep/na"me é\n.bin', size_bytes=10, sha256="ef" * 32),
            checkpoint_pb2.ArtifactFile(path="empty", size_bytes=0, sha256="00" * 32),
        ]
        return checkpoint_pb2.Checkpoint(name=request.name, files=files)

    async def GetModel(self, request: Any, context: Any) -> Any:
        checkpoint = await self.GetCheckpoint(request, context)
        return model_pb2.Model(name=request.name, files=checkpoint.files)

    async def DownloadModel(self, request: Any, context: Any) -> AsyncIterator[Any]:
        async for each in self.DownloadCheckpoint(request, context):
            yield trainer_service_pb2.DownloadModelResponse(offset_bytes=each.offset_bytes, chunk=each.chunk)

    async def DownloadCheckpoint(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.seen.note(request, context)
        if request.name.endswith("step-5"):
            raise FailedPrecondition("CHECKPOINT_CORRUPT", "it no longer matches its manifest")
        sizes = {"model.safetensors": 3_000_000, "empty": 0}
        end = sizes.get(request.path, 10)
        for start in range(request.offset_bytes, end, MIB):
            yield trainer_service_pb2.DownloadCheckpointResponse(
                offset_bytes=start, chunk=content(start, min(end, start + MIB))
            )


class Services:
    """Both services on one real server, which can be stopped and started again on the same port."""

    def __init__(self) -> None:
        self.seen = Seen()
        self.streams = StreamsSeen()
        self.port = 0
        self._server: Any = None

    async def start(self) -> None:
        server = grpc.aio.server(
            interceptors=[Observed(), Errors(), Identity(TOKEN)],
            options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 4 * MIB)],
        )
        dataset_service_pb2_grpc.add_DatasetServiceServicer_to_server(DatasetServicer(self.seen), server)
        trainer_service_pb2_grpc.add_TrainerServiceServicer_to_server(TrainerServicer(self.seen, self.streams), server)
        servicer: Any = health.aio.HealthServicer()  # pyright: ignore[reportAttributeAccessIssue]
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        self.port = server.add_insecure_port(f"127.0.0.1:{self.port}")
        await server.start()
        await servicer.set("", health_pb2.HealthCheckResponse.SERVING)
        self._server = server

    async def stop(self) -> None:
        await self._server.stop(None)


@pytest.fixture
async def services() -> AsyncIterator[Services]:
    running = Services()
    await running.start()
    yield running
    await running.stop()


@pytest.fixture
def seen(services: Services) -> Seen:
    return services.seen


@pytest.fixture
def streams(services: Services) -> StreamsSeen:
    return services.streams


@pytest.fixture
def settings(services: Services, tmp_path: Path) -> Callable[..., GatewaySettings]:
    """Settings of a gateway before the services; arguments are further environment variables."""

    def make(**environment: str) -> GatewaySettings:
        token = tmp_path / "token"
        token.write_text(TOKEN + "\n")
        target = f"127.0.0.1:{services.port}"
        values = {"RLHF_HOME": str(tmp_path), "RLHF_TOKEN_FILE": str(token)}
        values |= {"RLHF_DATASET_TARGET": target, "RLHF_TRAINER_TARGET": target}
        return GatewaySettings.read(Environment(values | environment))

    return make


@pytest.fixture
async def start_gateway(settings: Callable[..., GatewaySettings]) -> AsyncIterator[Callable[..., Any]]:
    """Starts a gateway with further environment variables."""
    running: list[Gateway] = []

    async def make(**environment: str) -> Gateway:
        gateway = build(settings(**environment))
        await gateway.start()
        running.append(gateway)
        return gateway

    yield make
    for gateway in running:
        await gateway.stop()


@pytest.fixture
async def gateway(start_gateway: Callable[..., Any]) -> Gateway:
    return await start_gateway()


@pytest.fixture
async def http(gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    base = f"http://127.0.0.1:{gateway.http_port}"
    async with httpx.AsyncClient(base_url=base, headers=AUTHORIZATION, timeout=20, trust_env=False) as client:
        yield client


@pytest.fixture
async def channel(gateway: Gateway) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.port}") as opened:
        yield opened
