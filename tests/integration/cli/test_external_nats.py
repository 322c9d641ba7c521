"""A mesh whose NATS is somebody else's and away when it starts, and again later: it comes up and works without."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from pathlib import Path

import psycopg

from services.mesh.events.bus import STREAM, connect
from services.supervisor import embedded
from services.supervisor.embedded import process
from tests.fix_embedded import held_in_a_thread
from tests.fix_live import wait_until
from tests.fix_mesh import Mesh, embedded_mesh

ROW = '{"prompt": [{"role": "user", "content": "q"}], "answer": "a"}\n'


def readiness(mesh: Mesh) -> tuple[int, str]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{mesh.endpoints()['http']}/readyz", timeout=10) as answer:
        return answer.status, json.loads(answer.read())["status"]


def upload(mesh: Mesh, rows: Path, name: str) -> None:
    done = mesh.rlhf("dataset", "upload", str(rows), "--name", name, "--format", "prompt")
    assert done.returncode == 0, done.stderr


def unpublished(mesh: Mesh) -> int:
    with psycopg.connect(mesh.endpoints()["postgres_url"]) as connection:
        found = connection.execute("SELECT count(*) FROM dataset.events WHERE publish_time IS NULL").fetchone()
    assert found is not None
    return found[0]


async def stored(url: str) -> int:
    connection = await connect(url)
    try:
        return (await connection.jetstream().stream_info(STREAM)).state.messages
    finally:
        await connection.close()


def test_a_mesh_starts_and_works_without_its_nats(tmp_path: Path) -> None:
    (tmp_path / "nats").mkdir()
    server = embedded.Nats(tmp_path / "nats", embedded.free_port())
    rows = tmp_path / "rows.jsonl"
    rows.write_text(ROW)
    # Nothing trains: Ray and what forks its workers would be most of the start.
    settings = {"RLHF_NATS_URL": server.url, "RLHF_RAY_ADDRESS": "127.0.0.1:1", "RLHF_DISK_LOW_BYTES": "0"}
    with embedded_mesh(tmp_path / "home", **settings) as mesh:
        done = mesh.rlhf("up")
        assert done.returncode == 0, done.stderr
        wait_until(lambda: readiness(mesh) == (200, "degraded"), "the gateway to say so", 20)
        for outage in (1, 2):
            upload(mesh, rows, f"away{outage}")
            assert unpublished(mesh) == 1
            with held_in_a_thread(lambda: process.running(server.program(tmp_path / "log"))):
                wait_until(lambda: readiness(mesh) == (200, "ready"), "the connection", 20)
                wait_until(lambda: unpublished(mesh) == 0, "the event", 20)
                assert asyncio.run(stored(server.url)) == outage
            wait_until(lambda: readiness(mesh) == (200, "degraded"), "the outage to be noticed", 20)
        log = mesh.home.log("dataset").read_text()
        assert 3 <= log.count("NATS is away") <= 7, "a line when it begins and one when it is over, not one each second"
