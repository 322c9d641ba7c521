"""Fixtures: a real PostgreSQL and a real NATS, started once for the session when first asked for, and a home."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TypeVar

import psycopg
import pytest
from psycopg import sql

from services.mesh import identity
from services.mesh.events.bus import connect
from services.supervisor import embedded

T = TypeVar("T")
_numbers = itertools.count(1)


@contextlib.contextmanager
def held_in_a_thread(make: Callable[[], AbstractAsyncContextManager[T]]) -> Iterator[T]:
    """An asynchronous context manager held open by a thread with its own loop, as a test's loop ends with the test."""
    entered: concurrent.futures.Future[T] = concurrent.futures.Future()
    leave = threading.Event()

    async def hold() -> None:
        async with make() as value:
            entered.set_result(value)
            await asyncio.to_thread(leave.wait)

    def run() -> None:
        try:
            asyncio.run(hold())
        except BaseException as error:
            if entered.done():
                raise
            entered.set_exception(error)

    thread = threading.Thread(target=run, name="embedded")
    thread.start()
    try:
        yield entered.result(60)
    finally:
        leave.set()
        thread.join(60)


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[embedded.Postgres]:
    folder = tmp_path_factory.mktemp("postgres")
    with held_in_a_thread(lambda: embedded.postgres(folder, durable=False)) as server:
        yield server


@pytest.fixture
def postgres_url(postgres_server: embedded.Postgres) -> Iterator[str]:
    """An empty database of the test's own, as the role that the services have."""
    name = f"test_{next(_numbers)}"
    with psycopg.connect(postgres_server.administrator_url, autocommit=True) as connection:
        # The copy of the empty template is made by file, which is faster than through the log for so little.
        connection.execute(sql.SQL("CREATE DATABASE {} OWNER rlhf STRATEGY file_copy").format(sql.Identifier(name)))
        yield postgres_server.url_of(name)
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture(scope="session")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[embedded.Nats]:
    folder = tmp_path_factory.mktemp("nats")
    with held_in_a_thread(lambda: embedded.nats(folder)) as server:
        yield server


@pytest.fixture
def nats_url(nats_server: embedded.Nats) -> str:
    """A server without streams."""
    asyncio.run(_delete_streams(nats_server.url))
    return nats_server.url


async def _delete_streams(url: str) -> None:
    connection = await connect(url)
    jetstream = connection.jetstream()
    for stream in await jetstream.streams_info():
        await jetstream.delete_stream(str(stream.config.name))
    await connection.close()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An empty home with a token."""
    folder = tmp_path / "home"
    folder.mkdir(mode=0o700)
    identity.ensure_token(folder / "token")
    return folder
