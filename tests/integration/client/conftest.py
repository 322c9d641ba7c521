"""The services and the gateway as processes over PostgreSQL and NATS; runs follow a script, all else is real."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from services.client import AsyncClient, Client
from services.mesh import identity
from services.supervisor import embedded
from services.supervisor.embedded.ports import free_port
from tests.fix_embedded import held_in_a_thread
from tests.fix_relay import Relay, relay
from tests.fix_rogue import socket_folder, tell
from tests.integration.trainer.test_runs import ready_model, scripted_python


@dataclass(frozen=True)
class Mesh:
    """A gateway at `port` and at `socket`, which its home names; the model `base`, whose jobs are scripted."""

    home: Path
    port: int
    http_port: int
    socket: Path


class HeldPort:
    """A port that nobody else finds free until `release`: other tests look for ports while the services start."""

    def __init__(self) -> None:
        # Without SO_REUSEADDR, so that nobody binds it beside this. Such a bind also fails on a port with connections
        # in TIME_WAIT, which `free_port` calls free, since the servers it is for set SO_REUSEADDR: then the next one.
        refused: set[int] = set()
        while True:
            self._socket = socket.socket()
            self.number = free_port(refused)
            try:
                self._socket.bind(("127.0.0.1", self.number))
                return
            except OSError as error:
                self._socket.close()
                if error.errno != errno.EADDRINUSE:
                    raise

    def release(self) -> None:
        self._socket.close()


@contextlib.contextmanager
def process(module: str, values: dict[str, str], home: Path) -> Iterator[None]:
    """`python -m module`, once it is ready, until the block ends."""
    ready, log = home / f"{module}.ready", home / f"{module}.log"
    with log.open("ab") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", module],
            env={**os.environ, **values, "RLHF_READY_FILE": str(ready)},
            stdout=output,
            stderr=output,
        )
    try:
        deadline = time.monotonic() + 60
        while not ready.exists():
            assert child.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.02)
        yield
        assert child.poll() is None, f"{module} has ended: {child.returncode}\n{log.read_text()[-3000:]}"
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(20)


@pytest.fixture(scope="session")
def own_nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[embedded.Nats]:
    """Not the one of other tests: these services stay to the end, and would take part in every consumer of theirs."""
    folder = tmp_path_factory.mktemp("client-nats")
    with held_in_a_thread(lambda: embedded.nats(folder)) as server:
        yield server


@pytest.fixture(scope="session")
def mesh(
    postgres_server: embedded.Postgres, own_nats: embedded.Nats, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mesh]:
    home = tmp_path_factory.mktemp("client") / "home"
    (home / "run").mkdir(parents=True)
    home.chmod(0o700)
    identity.ensure_token(home / "token")
    with psycopg.connect(postgres_server.administrator_url, autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS client_tests WITH (FORCE)")
        connection.execute("CREATE DATABASE client_tests OWNER rlhf STRATEGY file_copy")
    url = postgres_server.url_of("client_tests")
    held = [HeldPort() for _ in range(4)]
    dataset, trainer, grpc, http = (port.number for port in held)
    listening = {"dataset": held[:1], "trainer": held[1:2], "gateway": held[2:]}
    values = {
        "RLHF_HOME": str(home),
        "RLHF_POSTGRES_URL": url,
        "RLHF_NATS_URL": own_nats.url,
        "RLHF_DATASET_LISTEN": f"127.0.0.1:{dataset}",
        "RLHF_DATASET_TARGET": f"127.0.0.1:{dataset}",
        "RLHF_TRAINER_LISTEN": f"127.0.0.1:{trainer}",
        "RLHF_TRAINER_TARGET": f"127.0.0.1:{trainer}",
        "RLHF_GATEWAY_GRPC_LISTEN": f"127.0.0.1:{grpc}",
        "RLHF_GATEWAY_HTTP_LISTEN": f"127.0.0.1:{http}",
        "RLHF_RAY_ADDRESS": "127.0.0.1:1",
        "RLHF_TRAINER_WORKER_PYTHON": str(scripted_python(home)),
        "RLHF_TRAINER_LEASE_SECONDS": "2",
        "RLHF_TRAINER_CUSTOM_CODE": "allow",
        "RLHF_OUTBOUND_ALLOW": "loopback",
        "SCRIPT": json.dumps({"step_seconds": 0.005, "save_at": [20, 40]}),
    }
    modules = ("dataset", "dataset.worker", "trainer", "trainer.worker", "gateway")
    with socket_folder() as folder, contextlib.ExitStack() as stack:
        values["RLHF_GATEWAY_LOCAL_LISTEN"] = tell(
            home, folder / "gateway.sock", http=f"http://127.0.0.1:{http}", grpc=f"127.0.0.1:{grpc}"
        )
        for module in modules:
            for port in listening.get(module, ()):
                port.release()
            stack.enter_context(process(f"services.{module}", values, home))
            if module == "trainer":
                asyncio.run(ready_model(home, url))
        yield Mesh(home, grpc, http, folder / "gateway.sock")


@pytest.fixture
def client(mesh: Mesh) -> Iterator[Client]:
    with Client(home=mesh.home) as made:
        yield made


@pytest.fixture
async def async_client(mesh: Mesh) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(home=mesh.home) as made:
        yield made


@pytest.fixture
def cutting(mesh: Mesh) -> Iterator[Relay]:
    """Before the gateway; cuts connections when it is told to."""
    with held_in_a_thread(lambda: relay(mesh.port)) as made:
        yield made


@pytest.fixture
def cut_client(mesh: Mesh, cutting: Relay) -> Iterator[tuple[Client, list[str]]]:
    """A client behind `cutting`, and what it was told about losses."""
    told: list[str] = []
    with Client(f"127.0.0.1:{cutting.port}", home=mesh.home, on_lost=told.append) as made:
        yield made, told


@pytest.fixture
def version(client: Client) -> str:
    """A dataset version with rows to train on."""
    return upload_rows(client, "examples")


def rows(count: int) -> list[dict[str, object]]:
    return [
        {"messages": [{"role": "user", "content": f"What is {n}?"}, {"role": "assistant", "content": str(n)}]}
        for n in range(count)
    ]


def upload_rows(client: Client, dataset: str, count: int = 64) -> str:
    """The version of a dataset that is made where it is not there."""
    from services.client import json_lines
    from services.mesh.errors import NotFound

    try:
        client.datasets.get(dataset)
    except NotFound:
        client.datasets.create(dataset, "messages")
    done = client.uploads.upload(dataset, json_lines(rows(count)), file_name="rows.jsonl")
    assert done.dataset_version, done
    return done.dataset_version


@pytest.fixture
def new_job(client: Client, version: str) -> Callable[..., str]:
    """Creates a job whose run follows the script."""

    def create(steps: int = 40, **more: object) -> str:
        params = {"batch_size": 8, "max_length": 32, "steps": steps}
        job = client.training_jobs.create("sft", model="base", dataset=version, params=params, **more)  # type: ignore[arg-type]
        return job.name

    return create
