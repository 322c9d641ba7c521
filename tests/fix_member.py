"""Fixtures and helpers for a member of the mesh: a database, jobs that announce themselves, a server of four shapes."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from rlhf.event.v1.training_job_changed_pb2 import TrainingJobChanged

from services.mesh.db.postgres import Connection, Database
from services.mesh.events.outbox import EventLog
from services.mesh.jobs.model import Job, State
from services.mesh.jobs.store import Jobs
from services.mesh.rpc.server import Server
from services.mesh.settings import Environment, MeshSettings
from services.supervisor import embedded

PROJECT = "projects/default"
_numbers = itertools.count(1)


def announce_in(log: EventLog) -> Callable[[Connection, Job, State | None], Awaitable[None]]:
    """Writes the event of each move, as a service does."""

    async def announce(connection: Connection, job: Job, before: State | None) -> None:
        message = TrainingJobChanged()
        message.training_job.name = job.name
        await log.add(connection, job.name, job.sequence, message)

    return announce


@pytest.fixture(scope="session")
def shared_url(postgres_server: embedded.Postgres) -> str:
    """A database in which each test has a schema of its own, which is faster than a database for each."""
    with psycopg.connect(postgres_server.administrator_url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE shared OWNER rlhf")
    return postgres_server.url_of("shared")


@pytest.fixture
async def database(shared_url: str) -> AsyncIterator[Database]:
    """Migrated, open, listening."""
    database = Database(shared_url, f"testing{next(_numbers)}")
    await database.migrate("services.mesh")
    async with database:
        yield database


@pytest.fixture
def event_log(database: Database) -> EventLog:
    return EventLog(database)


@pytest.fixture
def jobs(database: Database, event_log: EventLog) -> Jobs:
    return Jobs(database, announce_in(event_log))


async def new_job(database: Database, jobs: Jobs, id_: str, *, kind: str = "work", priority: int = 0) -> Job:
    async with database.transaction() as connection:
        return await jobs.create(connection, kind, f"{PROJECT}/trainingJobs/{id_}", {"id": id_}, priority)


async def stored(database: Database, jobs: Jobs, id_: str) -> Job:
    async with database.transaction() as connection:
        return await jobs.get(connection, f"{PROJECT}/trainingJobs/{id_}")


async def rows(database: Database, query: str, *parameters: object) -> list[tuple[Any, ...]]:
    async with database.transaction() as connection:
        cursor = await connection.execute(query.encode(), parameters)
        return await cursor.fetchall()


async def until(condition: Callable[[], Awaitable[bool] | bool], seconds: float = 20.0) -> None:
    """Poll until it holds. Fails the test when it does not in time."""
    deadline = time.monotonic() + seconds
    while True:
        held = condition()
        if held if isinstance(held, bool) else await held:
            return
        assert time.monotonic() < deadline, f"not within {seconds} s"
        await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def background(routine: Any) -> AsyncIterator[asyncio.Task[None]]:
    """A routine that runs beside the block. What it raised, and a refusal to stop, fail the test."""
    task = asyncio.create_task(routine)
    try:
        yield task
    finally:
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=20)
        assert done, "it does not stop"
        if not task.cancelled():
            task.result()


def mesh_settings(home: Path, **changes: Any) -> MeshSettings:
    """Of a server on a port of the system's choice, without PostgreSQL and NATS unless told."""
    values = {"RLHF_HOME": str(home), "RLHF_POSTGRES_URL": "unused", "RLHF_NATS_URL": "unused"}
    return dataclasses.replace(MeshSettings.read(Environment(values), "testing"), **changes)


SHAPES = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
SHAPES_SERVICE = "testing.Shapes"
# What a method does: answers, or raises.
Act = Callable[[str], Awaitable[str]]


def shapes_servicer(act: Act) -> Callable[[grpc.aio.Server], None]:
    """One method per call shape, each of which calls `act`; streams send a reply before."""

    async def unary_unary(request: StringValue, context: Any) -> StringValue:
        return StringValue(value=await act(request.value))

    async def unary_stream(request: StringValue, context: Any) -> AsyncIterator[StringValue]:
        yield StringValue(value="before")
        yield StringValue(value=await act(request.value))

    async def stream_unary(requests: AsyncIterator[StringValue], context: Any) -> StringValue:
        return StringValue(value=await act(",".join([request.value async for request in requests])))

    async def stream_stream(requests: AsyncIterator[StringValue], context: Any) -> AsyncIterator[StringValue]:
        async for request in requests:
            yield StringValue(value="before")
            yield StringValue(value=await act(request.value))

    methods = {method.__name__: method for method in (unary_unary, unary_stream, stream_unary, stream_stream)}
    handlers = {
        name: getattr(grpc, f"{name}_rpc_method_handler")(
            method, request_deserializer=StringValue.FromString, response_serializer=StringValue.SerializeToString
        )
        for name, method in methods.items()
    }
    generic = grpc.method_handlers_generic_handler(SHAPES_SERVICE, handlers)
    return lambda server: server.add_generic_rpc_handlers((generic,))


async def call_shape(channel: grpc.aio.Channel, shape: str, value: str, **options: Any) -> list[str]:
    """Every reply of one call."""
    method = getattr(channel, shape)(
        f"/{SHAPES_SERVICE}/{shape}",
        request_serializer=StringValue.SerializeToString,
        response_deserializer=StringValue.FromString,
    )

    async def requests() -> AsyncIterator[StringValue]:
        yield StringValue(value=value)

    pending = method(requests() if shape.startswith("stream") else StringValue(value=value), **options)
    if shape.endswith("unary"):
        return [(await pending).value]
    try:
        return [reply.value async for reply in pending]
    finally:
        pending.cancel()


@contextlib.asynccontextmanager
async def shapes_server(home: Path, act: Act, **changes: Any) -> AsyncIterator[Server]:
    server = Server("testing", mesh_settings(home, **changes))
    server.serve(SHAPES_SERVICE, shapes_servicer(act))
    await server.start()
    try:
        yield server
    finally:
        await server.stop()
