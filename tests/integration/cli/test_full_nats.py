"""The disk of NATS is full, a real one. A stream that could not be written is not tried again by its server, not even
when there is room: who publishes says so, and the supervisor starts the server anew. Events wait, and are there once.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import psycopg
import pytest

from services.mesh.db.postgres import Database
from services.mesh.events.outbox import Bus, EventLog, Relay
from services.mesh.rpc.server import Server
from services.mesh.settings import NATS
from services.supervisor import embedded, probes
from services.supervisor.child import Child
from tests.fix_live import wait_until
from tests.fix_member import background, mesh_settings, until
from tests.fix_mesh import Mesh, embedded_mesh
from tests.integration.mesh.test_events import UNPUBLISHED, is_count, messages, write

DISK_MIB = 8
# Some kB each: what is written while the disk is full does not fit what is left of it.
EVENTS = 40


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "nats"
    folder.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m,mode=700", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a disk can be mounted by root only")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(ballast: Path) -> None:
    with ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"x" * 4096):
            pass


async def test_events_wait_while_the_disk_of_nats_is_full(
    database: Database, event_log: EventLog, home: Path, disk: Path, tmp_path: Path
) -> None:
    server = embedded.Nats(disk, embedded.free_port())
    async with contextlib.AsyncExitStack() as stack:
        service = Server("testing", mesh_settings(home))
        await service.start()
        stack.push_async_callback(service.stop)
        answers = probes.every(server.is_ready, probes.grpc_has([f"127.0.0.1:{service.port}"], NATS))
        child = Child(
            replace(server.program(tmp_path / "log"), answers=answers, patience_seconds=3.0), [], lambda: None
        )
        stack.push_async_callback(child.stop)
        await stack.enter_async_context(background(child.run()))
        bus = await stack.enter_async_context(Bus(server.url, "testing", partial(service.set_serving, NATS)))
        await child.ready.wait()
        async with background(Relay("testing", database, event_log, bus).run()):
            await write(database, event_log, "before")
            await until(lambda: is_count(database, UNPUBLISHED, 0))
            fill(disk / "ballast")
            for number in range(EVENTS):
                await write(database, event_log, f"full{number}", label="x" * 50_000)
            await until(lambda: child.state.restarts > 0, 60)
            assert not await is_count(database, UNPUBLISHED, 0)
            (disk / "ballast").unlink()
            await until(lambda: is_count(database, UNPUBLISHED, 0), 60)
        found = await messages(bus)
        ids = [(message.headers or {})["Nats-Msg-Id"] for message in found]
        assert len(ids) == len(set(ids)) == EVENTS + 1


def test_the_supervisor_of_a_mesh_notices(disk: Path, tmp_path: Path) -> None:
    """NATS itself answers all the while."""
    root = tmp_path  # `disk` is its folder `nats`
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": [{"role": "user", "content": "q"}], "answer": "a"}\n')
    # Nothing trains: Ray and what forks its workers would be most of the start.
    settings = {"RLHF_SUPERVISOR_PATIENCE_SECONDS": "5", "RLHF_RAY_ADDRESS": "127.0.0.1:1"}
    with embedded_mesh(root, **settings) as mesh:
        done = mesh.rlhf("up")
        assert done.returncode == 0, done.stderr
        fill(disk / "ballast")
        for name in ("a", "b"):
            done = mesh.rlhf("dataset", "upload", str(rows), "--name", name, "--format", "prompt")
            assert done.returncode == 0, done.stderr
        wait_until(lambda: restarts(mesh) > 0, "NATS to be started again", 60)
        (disk / "ballast").unlink()
        with psycopg.connect(mesh.endpoints()["postgres_url"], autocommit=True) as connection:
            left = "SELECT count(*) FILTER (WHERE publish_time IS NULL), count(*) FROM dataset.events"
            wait_until(lambda: connection.execute(left).fetchone() == (0, 2), "events to be published", 60)


def restarts(mesh: Mesh) -> int:
    return next(each["restarts"] for each in mesh.status()["processes"] if each["name"] == "nats")
