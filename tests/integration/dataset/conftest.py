"""The dataset service in this process, its worker in another, on a real PostgreSQL and a real NATS."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import psycopg
import pytest

from services.dataset import app
from services.dataset.settings import Settings
from services.mesh import identity
from services.mesh.rpc.client import connect
from services.supervisor import embedded
from tests.integration.dataset.caller import Caller


def environment(home: Path, postgres_url: str, nats_url: str, **changes: str) -> dict[str, str]:
    """Short times, so that tests need not wait."""
    return {
        "RLHF_HOME": str(home),
        "RLHF_POSTGRES_URL": postgres_url,
        "RLHF_NATS_URL": nats_url,
        "RLHF_DATASET_LEASE_SECONDS": "1",
        "RLHF_DATASET_SWEEP_SECONDS": "0.2",
        "RLHF_DATASET_HEARTBEAT_SECONDS": "0.3",
        # Whatever the machine has.
        "RLHF_DISK_LOW_BYTES": "0",
        **changes,
    }


@contextlib.asynccontextmanager
async def serving(values: Mapping[str, str]) -> AsyncIterator[Caller]:
    """The service in this process, and a client of it over real gRPC."""
    settings = Settings.from_env(values)
    server = app.build(settings)
    await server.start()
    try:
        async with calling(f"127.0.0.1:{server.port}", values) as caller:
            yield caller
    finally:
        await server.stop()


@contextlib.asynccontextmanager
async def calling(target: str, values: Mapping[str, str]) -> AsyncIterator[Caller]:
    home = Path(values["RLHF_HOME"])
    async with connect(target, identity.read_token(home / "token")) as channel:
        yield Caller(channel, home, target)


@contextlib.contextmanager
def process(module: str, values: Mapping[str, str], name: str = "process") -> Iterator[subprocess.Popen[bytes]]:
    """`python -m module`, once it is ready; killed at the end if it still runs."""
    home = Path(values["RLHF_HOME"])
    ready, log = home / f"{name}.ready", home / f"{name}.log"
    ready.unlink(missing_ok=True)
    with log.open("ab") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", module],
            env={**os.environ, **values, "RLHF_READY_FILE": str(ready)},
            stdout=output,
            stderr=output,
            # As a supervisor would: what it leaves behind is then found by its group.
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 60
        while not ready.exists():
            assert child.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.02)
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.send_signal(signal.SIGTERM)
        try:
            child.wait(15)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


@pytest.fixture(scope="session")
def shared(
    postgres_server: embedded.Postgres, nats_server: embedded.Nats, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """A home and a database of all tests that kill nothing, with one worker process for them."""
    home = tmp_path_factory.mktemp("dataset") / "home"
    home.mkdir(mode=0o700)
    identity.ensure_token(home / "token")
    with psycopg.connect(postgres_server.administrator_url, autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS dataset_tests WITH (FORCE)")
        connection.execute("CREATE DATABASE dataset_tests OWNER rlhf STRATEGY file_copy")
    url = postgres_server.url_of("dataset_tests")
    values = environment(home, url, nats_server.url)
    with process("services.dataset.worker", values, "worker"):
        yield values


@pytest.fixture
async def caller(shared: dict[str, str]) -> AsyncIterator[Caller]:
    async with serving(shared) as found:
        yield found


@pytest.fixture
def own(home: Path, postgres_url: str, nats_url: str) -> dict[str, str]:
    """The environment of a test that kills processes: nothing in it is anybody else's."""
    return environment(home, postgres_url, nats_url)
