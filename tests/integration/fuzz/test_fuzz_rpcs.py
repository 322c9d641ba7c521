"""Every method of every service takes any message of its shape, and any bytes: it answers or refuses, and no crash."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import psycopg
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health_pb2
from psycopg.types.json import Jsonb

from services.dataset import app as dataset
from services.dataset.settings import Settings as DatasetSettings
from services.mesh import names
from services.trainer import app as trainer
from services.trainer.entities import TrainingSpec
from services.trainer.settings import Settings as TrainerSettings
from services.trainer.training.service import TRAINING
from tests.fix_hostile import PROJECT, REAL, message_of, methods

METHODS = {method.full_name: method for method in methods()}
MESSAGES = 60
# One that answers nothing for so long hangs; a stream may well stay open.
UNARY_SECONDS, STREAM_SECONDS = 20.0, 0.3
# A bug of ours, or one that we did not foresee. Anything else is a refusal with a reason.
CRASHES = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS}
STREAM_IS_OPEN = grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.fixture
async def channels(home: Path, postgres_url: str, nats_url: str) -> AsyncIterator[dict[str, grpc.aio.Channel]]:
    """To both services, by the full name of each."""
    values = {"RLHF_HOME": str(home), "RLHF_POSTGRES_URL": postgres_url, "RLHF_NATS_URL": nats_url}
    async with contextlib.AsyncExitStack() as stack:
        first = dataset.build(DatasetSettings.from_env(values))
        await first.start()
        stack.push_async_callback(first.stop)
        target = f"127.0.0.1:{first.port}"
        second = trainer.build(TrainerSettings.from_env({**values, "RLHF_DATASET_TARGET": target}))
        await second.start()
        stack.push_async_callback(second.stop)
        async with await psycopg.AsyncConnection.connect(postgres_url) as connection:
            await fill(connection)
        yield {
            # Channels without our client's manners: bytes in, bytes out.
            dataset.SERVICE.full_name: await stack.enter_async_context(grpc.aio.insecure_channel(target)),
            trainer.SERVICE.full_name: await stack.enter_async_context(
                grpc.aio.insecure_channel(f"127.0.0.1:{second.port}")
            ),
        }


async def fill(connection: psycopg.AsyncConnection) -> None:
    """Rows of everything that `REAL` names, so that calls find something."""
    real = {kind.rpartition("/")[2]: name for kind, name in REAL.items()}
    dataset_uid, upload_uid = names.uuid7(), real["Upload"].rpartition("/")[2]
    spec = TrainingSpec("sft", real["Model"], "0" * 64, 1, 64, real["DatasetVersion"], 1, "", 0, {}, "local", 1, {})
    rows = {
        "dataset.datasets (uid, name, parent, display_name, format, labels)": (
            (dataset_uid, real["Dataset"], PROJECT, "", "messages", Jsonb({}))
        ),
        "dataset.versions (dataset_uid, number, name, sha256, format, row_count, size_bytes, statistics, source_sha256,"
        " source_file_name)": (
            (dataset_uid, 1, real["DatasetVersion"], "0" * 64, "messages", 0, 0, Jsonb({}), "0" * 64, "f.jsonl")
        ),
        "dataset.uploads (uid, name, dataset_uid, file_name, size_bytes, sha256, expire_time)": (
            (upload_uid, real["Upload"], dataset_uid, "f.jsonl", 100, "0" * 64, datetime.now(UTC) + timedelta(days=1))
        ),
        "trainer.models (uid, name, parent, display_name, source, labels, state, context_length)": (
            (names.uuid7(), real["Model"], PROJECT, "", Jsonb({}), Jsonb({}), "READY", 64)
        ),
        "trainer.jobs (uid, kind, name, parent, state, spec)": (
            (job_uid := names.uuid7(), TRAINING, real["TrainingJob"], PROJECT, "RUNNING", Jsonb(asdict(spec)))
        ),
        "trainer.checkpoints (job_uid, step, name, attempt, kind, state, base_model, parents)": (
            (job_uid, 1, real["Checkpoint"], 1, "full", "VERIFYING", "", [])
        ),
    }
    for into, values in rows.items():
        await connection.execute(f"INSERT INTO {into} VALUES ({', '.join(['%s'] * len(values))})".encode(), values)


@pytest.fixture
def bearer(home: Path) -> tuple[tuple[str, str]]:
    return (("authorization", f"Bearer {(home / 'token').read_text().strip()}"),)


async def outcome(
    channel: grpc.aio.Channel, bearer: tuple[tuple[str, str]], method: MethodDescriptor, requests: list[bytes]
) -> tuple[str, str]:
    """The name of the status of one call and what it says; of a stream, after its first answers."""
    asks = "stream" if method.client_streaming else "unary"
    answers = "stream" if method.server_streaming else "unary"
    path = f"/{method.containing_service.full_name}/{method.name}"
    reply = message_factory.GetMessageClass(method.output_type)
    call = getattr(channel, f"{asks}_{answers}")(path, response_deserializer=reply.FromString)
    seconds = STREAM_SECONDS if method.server_streaming else UNARY_SECONDS
    pending = call(iter(requests) if method.client_streaming else requests[0], timeout=seconds, metadata=bearer)
    try:
        if method.server_streaming:
            async for _ in pending:
                pass
        else:
            await pending
    except grpc.aio.AioRpcError as error:
        return error.code().name, error.details() or ""
    finally:
        pending.cancel()
    return "OK", ""


def messages(method: MethodDescriptor) -> Iterator[list[bytes]]:
    """The same ones each time. A client stream gets up to three."""
    for seed in range(MESSAGES):
        numbers = random.Random(f"{method.full_name} {seed}")
        count = numbers.randrange(4) if method.client_streaming else 1
        yield [message_of(method.input_type, numbers).SerializeToString() for _ in range(count)]


def refused_well(method: MethodDescriptor, status: str, details: str) -> bool:
    if method.server_streaming and status == STREAM_IS_OPEN.name:
        return True
    known = status in {code.name for code in grpc.StatusCode} - {code.name for code in CRASHES}
    return status == "OK" or (known and status not in ("DEADLINE_EXCEEDED", "UNAVAILABLE") and details != "")


async def is_serving(channel: grpc.aio.Channel) -> bool:
    check = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    return (await check(health_pb2.HealthCheckRequest(), timeout=10)).status == health_pb2.HealthCheckResponse.SERVING


async def test_any_message_of_the_right_shape(
    channels: dict[str, grpc.aio.Channel], bearer: tuple[tuple[str, str]]
) -> None:
    bad: list[str] = []
    statuses: dict[str, set[str]] = {}

    async def try_out(method: MethodDescriptor) -> None:
        channel = channels[method.containing_service.full_name]
        for seed, requests in enumerate(messages(method)):
            status, details = await outcome(channel, bearer, method, requests)
            statuses.setdefault(method.full_name, set()).add(status)
            if not refused_well(method, status, details):
                bad.append(f"{method.full_name} seed {seed}: {status} {details}")

    await asyncio.gather(*(try_out(method) for method in METHODS.values()))
    assert not bad, "\n".join(bad[:20])
    assert len(METHODS) > 30
    # Else it has fuzzed nothing but the door. How many get in depends on who deletes what before whom.
    got_in = {name for name, seen in statuses.items() if seen & {"OK", "FAILED_PRECONDITION", STREAM_IS_OPEN.name}}
    assert len(got_in) > len(METHODS) / 2, set(METHODS) - got_in
    assert all([await is_serving(channel) for channel in channels.values()])


async def test_bytes_that_are_no_message(channels: dict[str, grpc.aio.Channel], bearer: tuple[tuple[str, str]]) -> None:
    """A field of 2 GB announced, a wire type that there is not, text that is not UTF-8, a message cut short, noise."""
    hostile = [b"\x0a\xff\xff\xff\xff\x07", b"\x0f", b"\x0a\x02\xff\xfe", b"\x0a\x05ab", b"\xff" * 11]
    hostile += [random.Random(seed).randbytes(200) for seed in range(10)]
    bad: list[str] = []
    for method in METHODS.values():
        channel = channels[method.containing_service.full_name]
        for number, data in enumerate(hostile):
            status, details = await outcome(channel, bearer, method, [data])
            if not refused_well(method, status, details):
                bad.append(f"{method.full_name} message {number}: {status} {details}")
    assert not bad, "\n".join(bad[:20])
    assert all([await is_serving(channel) for channel in channels.values()])
