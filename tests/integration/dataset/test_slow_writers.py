"""Writers that send a byte now and then, over gRPC and over HTTP: given up, told where to go on, and let go on."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import pytest
from rlhf.dataset.v1 import dataset_service_pb2 as pb

from services.gateway import app as gateway_app
from services.gateway.http import upload as uploading
from services.gateway.settings import GatewaySettings
from services.mesh import identity
from services.mesh.errors import DeadlineExceeded
from services.mesh.rpc.client import call
from services.mesh.settings import Environment
from tests.integration.dataset.caller import Caller, lines, prompt_rows
from tests.integration.dataset.conftest import serving

DATA = lines(prompt_rows(2_000, padding=50))
# Between two bytes of one who drips: never silent for long.
DRIP_SECONDS = 0.05
IDLE_SECONDS = 1.0


@pytest.fixture
async def patient(own: dict[str, str]) -> AsyncIterator[Caller]:
    async with serving({**own, "RLHF_DATASET_WRITE_IDLE_SECONDS": str(IDLE_SECONDS)}) as caller:
        yield caller


@contextlib.asynccontextmanager
async def put(
    caller: Caller, upload: str, length: int
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A PUT of `length` bytes through a gateway, of which the head has been sent."""
    values = {"RLHF_HOME": str(caller.home), "RLHF_DATASET_TARGET": caller.target}
    gateway = gateway_app.build(GatewaySettings.read(Environment(values)))
    await gateway.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.http_port)
    try:
        token = identity.read_token(caller.home / "token")
        head = f"PUT /v1/{upload}:write HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n"
        writer.write(f"{head}Connection: close\r\nContent-Length: {length}\r\n\r\n".encode())
        yield reader, writer
    finally:
        writer.close()
        await gateway.stop()


async def test_dripping_writer_is_given_up_and_told_where_to_go_on(patient: Caller) -> None:
    upload = await patient.announce((await patient.dataset()).name, DATA)

    async def drip() -> AsyncIterator[pb.WriteUploadRequest]:
        yield pb.WriteUploadRequest(name=upload.name)
        for place in range(len(DATA)):
            yield pb.WriteUploadRequest(chunk=DATA[place : place + 1])
            await asyncio.sleep(DRIP_SECONDS)

    async with asyncio.timeout(30):
        with pytest.raises(DeadlineExceeded, match="RLHF_DATASET_WRITE_LEAST_BYTES_PER_SECOND") as refused:
            await call(patient.stub.WriteUpload(drip()))
    kept = (await patient.get_upload(upload.name)).received_bytes
    assert kept > 1
    assert refused.value.reason == "WRITER_SLOW"
    assert refused.value.metadata == {"received_bytes": str(kept), "least_bytes_per_second": "1024"}
    assert (await patient.write(upload.name, DATA, kept)).received_bytes == len(DATA)


async def test_empty_messages_do_not_count(patient: Caller) -> None:
    upload = await patient.announce((await patient.dataset()).name, DATA)

    async def nothing() -> AsyncIterator[pb.WriteUploadRequest]:
        yield pb.WriteUploadRequest(name=upload.name)
        while True:
            yield pb.WriteUploadRequest()
            await asyncio.sleep(DRIP_SECONDS)

    async with asyncio.timeout(30):
        with pytest.raises(DeadlineExceeded, match="0 bytes came in"):
            await call(patient.stub.WriteUpload(nothing()))


async def test_a_slow_writer_is_asked_for_no_more_than_the_least(own: dict[str, str]) -> None:
    """For longer than a span, with less than the default asks."""
    changes = {"RLHF_DATASET_WRITE_IDLE_SECONDS": str(IDLE_SECONDS), "RLHF_DATASET_WRITE_LEAST_BYTES_PER_SECOND": "2"}
    async with serving({**own, **changes}) as caller:
        upload = await caller.announce((await caller.dataset()).name, DATA)

        async def drip() -> AsyncIterator[pb.WriteUploadRequest]:
            yield pb.WriteUploadRequest(name=upload.name)
            for place in range(50):
                yield pb.WriteUploadRequest(chunk=DATA[place : place + 1])
                await asyncio.sleep(DRIP_SECONDS)

        assert (await call(caller.stub.WriteUpload(drip()))).received_bytes == 50


async def test_dripping_body_is_408_and_what_came_is_kept(patient: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploading, "FLUSH_SECONDS", DRIP_SECONDS)
    upload = await patient.announce((await patient.dataset()).name, DATA)
    async with asyncio.timeout(30), put(patient, upload.name, len(DATA)) as (reader, writer):
        answer = asyncio.create_task(reader.readuntil(b"\r\n\r\n"))
        sent = 0
        while not answer.done():
            writer.write(DATA[sent : sent + 1])
            sent += 1
            await asyncio.sleep(3 * DRIP_SECONDS)
        assert (await answer).startswith(b"HTTP/1.1 408 ")
        writer.write_eof()
        problem = json.loads(await reader.read())
    kept = (await patient.get_upload(upload.name)).received_bytes
    assert problem["reason"] == "WRITER_SLOW"
    assert problem["metadata"] == {"received_bytes": str(kept), "least_bytes_per_second": "1024"}
    assert 1 < kept <= sent
    assert (await patient.write(upload.name, DATA, kept)).received_bytes == len(DATA)


async def test_a_body_slower_than_a_message_in_the_idle_time_arrives(
    patient: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though a message of 1 MiB takes longer to fill than the service waits for one."""
    monkeypatch.setattr(uploading, "FLUSH_SECONDS", DRIP_SECONDS)
    upload = await patient.announce((await patient.dataset()).name, DATA)
    async with asyncio.timeout(30), put(patient, upload.name, len(DATA)) as (reader, writer):
        step = len(DATA) // 20 + 1
        for start in range(0, len(DATA), step):
            writer.write(DATA[start : start + step])
            await asyncio.sleep(3 * DRIP_SECONDS)
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
    assert (await patient.get_upload(upload.name)).received_bytes == len(DATA)
