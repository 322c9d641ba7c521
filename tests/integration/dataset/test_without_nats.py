"""NATS is away for longer than a client of it tries: what needs none goes on, then everything is told once."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from nats.aio.client import DEFAULT_MAX_RECONNECT_ATTEMPTS, Client

from services.dataset import app as dataset_app
from services.dataset.settings import Settings
from services.gateway.app import build as build_gateway
from services.gateway.settings import GatewaySettings
from services.mesh.errors import FailedPrecondition
from services.mesh.events import bus as mesh_nats
from services.mesh.events.bus import client_of, connect
from services.mesh.rpc.client import call
from services.mesh.settings import Environment
from services.supervisor import embedded
from services.supervisor.embedded import process as programs
from tests.fix_member import until
from tests.integration.dataset.caller import Caller, State, canonical, lines, prompt_rows
from tests.integration.dataset.conftest import calling, environment, process
from tests.integration.dataset.test_events import JOB, Trainer, delete, trainer

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


class Clients:
    """Counts the clients that the bus makes: each that was made has given up on the one before."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made = 0
        monkeypatch.setattr(mesh_nats, "client_of", self._client_of)

    def _client_of(self, url: str) -> tuple[Client, str]:
        self.made += 1
        return client_of(url)


async def said(caller: Caller, name: str) -> int:
    stub: Any = health_pb2_grpc.HealthStub(caller.channel)
    return (await call(stub.Check(health_pb2.HealthCheckRequest(service=name)))).status


async def is_readiness(url: str, status: str) -> bool:
    async with httpx.AsyncClient(trust_env=False) as http:
        answer = await http.get(f"{url}/readyz")
    assert answer.status_code == 200
    assert ("NATS takes no events" in answer.text) == (answer.json()["status"] == "degraded")
    return answer.json()["status"] == status


def heard_up_to(url: str, sequence: int) -> bool:
    """Whether the service has taken in an event of the job, and all before it."""
    with psycopg.connect(url) as connection:
        found = connection.execute(
            "SELECT max(sequence), (SELECT count(*) FROM dataset.consumed_events) FROM dataset.uses"
        )
        newest, count = found.fetchone() or (0, 0)
    return bool(newest and newest >= sequence and count >= sequence)


def unpublished(url: str) -> int:
    with psycopg.connect(url) as connection:
        counts = [
            connection.execute(f"SELECT count(*) FROM {schema}.events WHERE publish_time IS NULL".encode()).fetchone()
            for schema in ("dataset", "trainer")
        ]
    return sum(count[0] for count in counts if count)


async def published(url: str) -> list[dict[str, Any]]:
    """Every event in the stream, in its order."""
    connection = await connect(url)
    try:
        context = connection.jetstream()
        count = (await context.stream_info(mesh_nats.STREAM)).state.messages
        subscription = await context.subscribe(mesh_nats.SUBJECTS)
        return [json.loads((await subscription.next_msg(timeout=10)).data) for _ in range(count)]
    finally:
        await connection.close()


async def tell_on(told: Trainer, version: str, over: asyncio.Event) -> int:
    """Events one after the other until `over`; how many there were."""
    number = 1
    while not over.is_set():
        number += 1
        await told.tell(number, "RUNNING", version)
        await asyncio.sleep(0.01)
    return number


async def work_goes_on(caller: Caller) -> str:
    """An upload with its validation, and a download."""
    dataset = await caller.dataset()
    upload = await caller.upload(dataset.name, lines(prompt_rows(5)))
    assert upload.state == State.STATE_SUCCEEDED
    assert await caller.download(upload.dataset_version) == canonical(prompt_rows(5))
    return upload.dataset_version


@contextlib.asynccontextmanager
async def services(values: dict[str, str]) -> AsyncIterator[tuple[Caller, str, Trainer]]:
    """The dataset service, the HTTP address of a gateway before it, and one who tells of training jobs."""
    async with contextlib.AsyncExitStack() as stack:
        server = dataset_app.build(Settings.from_env(values))
        await server.start()
        stack.push_async_callback(server.stop)
        target = f"127.0.0.1:{server.port}"
        own = {"RLHF_HOME": values["RLHF_HOME"], "RLHF_DATASET_TARGET": target}
        gateway = build_gateway(GatewaySettings.read(Environment(own)))
        await gateway.start()
        stack.push_async_callback(gateway.stop)
        caller = await stack.enter_async_context(calling(target, values))
        told = await stack.enter_async_context(trainer(values))
        stack.enter_context(process("services.dataset.worker", values, "worker"))
        yield caller, f"http://127.0.0.1:{gateway.http_port}", told


async def goes_on_without(caller: Caller, url: str, used: str, clients: Clients) -> list[str]:
    """While NATS is away for longer than two clients of NATS would try; the versions that were made meanwhile."""
    before = clients.made
    await until(lambda: is_readiness(url, "degraded"))
    versions = [await work_goes_on(caller)]
    with pytest.raises(FailedPrecondition):  # it knows of the job that it has heard of
        await delete(caller, used)
    await until(lambda: clients.made - before > 2 * DEFAULT_MAX_RECONNECT_ATTEMPTS + 2, 120)
    versions.append(await work_goes_on(caller))
    assert (await said(caller, ""), await said(caller, "nats")) == (SERVING, NOT_SERVING)
    return versions


async def test_services_go_on_without_nats_and_tell_everything_once_afterwards(
    home: Path, postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mesh_nats, "_RECONNECT_SECONDS", 0.05)
    clients, over = Clients(monkeypatch), asyncio.Event()
    server = embedded.Nats(tmp_path / "nats", embedded.free_port())
    program = server.program(tmp_path / "log")
    async with services(environment(home, postgres_url, server.url)) as (caller, url, told):
        used = (await caller.dataset()).name
        async with programs.running(program) as running:
            await told.tell(1, "RUNNING", f"{used}/versions/1")
            await until(lambda: heard_up_to(postgres_url, 1))
            telling = asyncio.create_task(tell_on(told, f"{used}/versions/1", over))
            await until(lambda: heard_up_to(postgres_url, 5))
            caplog.clear()
            running.kill()
            await running.wait()
        versions = await goes_on_without(caller, url, used, clients)
        lines_of_it = [record for record in caplog.records if record.getMessage().startswith("NATS is away")]
        assert len(lines_of_it) == 2, "one of each bus, not one of each try"
        over.set()
        count = await telling
        assert unpublished(postgres_url) > len(versions)
        async with programs.running(program):
            await until(lambda: heard_up_to(postgres_url, count), 60)
            versions.append(await work_goes_on(caller))
            await until(lambda: unpublished(postgres_url) == 0)
            await until(lambda: is_readiness(url, "ready"))
            events = await published(server.url)
    assert any("over after" in record.getMessage() for record in caplog.records)
    assert len({event["id"] for event in events}) == len(events)
    assert [event["sequence"] for event in events if event["subject"] == JOB] == [str(n + 1) for n in range(count)]
    assert [event["subject"] for event in events if event["subject"] != JOB] == versions
