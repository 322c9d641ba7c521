"""The disk of PostgreSQL is full, a real one, in the middle of a training: first for tables, then for its log (PANIC).

Writes say so, training goes on, and once there is room the supervisor has PostgreSQL up again and nothing is lost.
"""

from __future__ import annotations

import contextlib
import csv
import http.client
import io
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from services.supervisor.embedded import Home, Postgres
from tests.fix_live import SFT, SFT_PARAMS, LiveMesh, alive, live_home, wait_until

pytestmark = pytest.mark.slow

DISK_MIB = 192
# What a write may answer while the disk is full.
CLEAR = {"DATABASE_DISK_FULL", "DATABASE_UNAVAILABLE"}


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveMesh]:
    """A mesh whose PostgreSQL has a disk of its own."""
    home = tmp_path_factory.mktemp("full")
    folder = home / "postgres"
    folder.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m,mode=700", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a disk can be mounted by root only")
    try:
        with live_home(home) as mesh:
            yield mesh
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(ballast: Path) -> None:
    with ballast.open("ab", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            pass


class Writer:
    """Makes datasets over HTTP: what was accepted, and how the others were refused."""

    def __init__(self, mesh: LiveMesh) -> None:
        self._host = mesh.json("status")["http"].removeprefix("http://")
        self._token = Home(mesh.home).token.read_text().strip()
        self.tried = 0
        self.accepted: set[str] = set()
        self.refused: list[tuple[int, str, str]] = []

    def write(self) -> bool:
        """Whether it was accepted. A row takes some KiB, so that a table soon needs to grow."""
        name = f"w{self.tried}"
        self.tried += 1
        labels = {f"key{number}-{'k' * 50}": os.urandom(31).hex() for number in range(60)}
        status, body = self._call("POST", f"/datasets?dataset_id={name}", {"format": "prompt", "labels": labels})
        if status == 200:
            self.accepted.add(name)
        else:
            self.refused.append((status, body.get("reason", ""), body.get("detail", "")))
        return status == 200

    def listed(self) -> list[str]:
        names: list[str] = []
        token = ""
        while True:
            status, body = self._call("GET", f"/datasets?page_size=1000&page_token={token}")
            assert status == 200, body
            names += [each["name"].rpartition("/")[2] for each in body["datasets"]]
            if not (token := body.get("nextPageToken", "")):
                return [name for name in names if name.startswith("w")]

    def _call(self, method: str, path: str, body: Any = None) -> tuple[int, dict[str, Any]]:
        connection = http.client.HTTPConnection(self._host, timeout=60)
        headers = {"authorization": f"Bearer {self._token}", "content-type": "application/json"}
        connection.request(method, f"/v1/projects/default{path}", json.dumps(body) if body else None, headers)
        answer = connection.getresponse()
        found = json.loads(answer.read() or b"{}")
        connection.close()
        return answer.status, found


def administrator(mesh: LiveMesh) -> psycopg.Connection:
    """To be made while there is room: the first connection to a database writes a file."""
    address = next(each["address"] for each in mesh.json("status")["processes"] if each["name"] == "postgres")
    server = Postgres(mesh.home / "postgres", int(address.rpartition(":")[2]))
    return psycopg.connect(server.administrator_url, autocommit=True)


def fill_the_log(mesh: LiveMesh, connection: psycopg.Connection) -> None:
    """Write into PostgreSQL's log alone, until it needs a file more and there is no room."""
    with pytest.raises(psycopg.OperationalError):
        for _ in range(DISK_MIB):
            connection.execute("SELECT pg_logical_emit_message(false, 'ballast', repeat('x', 1000000))")
    assert "PANIC" in Home(mesh.home).log("postgres").read_text()


def postgres_row(mesh: LiveMesh) -> dict[str, Any]:
    return next(each for each in mesh.json("status", check=False)["processes"] if each["name"] == "postgres")


def spool_bytes(mesh: LiveMesh, job: str) -> int:
    plans = mesh.home.glob("trainer/jobs/*/attempts/1/plan.json")
    [folder] = [path.parent for path in plans if json.loads(path.read_text())["job"].endswith(f"/{job}")]
    return (folder / "spool.jsonl").stat().st_size


def steps_of(mesh: LiveMesh, job: str) -> list[int]:
    text = mesh.rlhf("job", "metrics", job, "--metric", "train/loss", "-o", "csv").stdout
    return [int(row["step"]) for row in csv.DictReader(io.StringIO(text))]


def test_a_full_disk_of_postgres_stops_no_training_and_loses_nothing(mesh: LiveMesh) -> None:
    ballast, writer = mesh.home / "postgres" / "ballast", Writer(mesh)
    job = mesh.train("sft", *SFT, **SFT_PARAMS, steps=4000, epochs=1000, save_every_steps=4000)
    mesh.until(job, lambda found: int(found["stepCount"]) >= 1)
    assert writer.write()
    with administrator(mesh) as connection:
        fill(ballast)
        refuses_clearly(mesh, job, ballast, writer, connection)
    ballast.unlink()
    wait_until(lambda: postgres_row(mesh)["state"] == "ready", "PostgreSQL to be back", 60)
    wait_until(writer.write, "a write", 60)
    nothing_is_lost(mesh, job)
    names = writer.listed()
    assert len(names) == len(set(names))
    assert writer.accepted <= set(names)
    # Of what was refused, one may be there whose commit came through and whose answer was lost.
    assert len(set(names) - writer.accepted) <= 1


def refuses_clearly(mesh: LiveMesh, job: str, ballast: Path, writer: Writer, connection: psycopg.Connection) -> None:
    run = mesh.run_pid(job)
    wait_until(lambda: not writer.write() and writer.refused[-1][1] == "DATABASE_DISK_FULL", "a table to be full", 60)
    assert "free some space" in writer.refused[-1][2]
    assert set(writer.listed()) >= writer.accepted, "what is there can be read"
    fill_the_log(mesh, connection)
    fill(ballast)
    if pid := postgres_row(mesh)["pid"]:
        # It may be down already, which depends on where its log stood, and each of its starts then ends at once.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: "No space left on device" in postgres_row(mesh)["message"], "its start to fail", 60)
    before = spool_bytes(mesh, job)
    assert not writer.write()
    wait_until(lambda: spool_bytes(mesh, job) > before, "the run to take steps", 60)
    assert alive(run)
    assert {status for status, _, _ in writer.refused} == {503}, writer.refused
    assert {reason for _, reason, _ in writer.refused} <= CLEAR, writer.refused


def nothing_is_lost(mesh: LiveMesh, job: str) -> None:
    """Of a job that went on: every step's point is there, once."""
    seen = int(mesh.until(job, lambda found: found["state"] == "JOB_STATE_RUNNING")["stepCount"])
    mesh.until(job, lambda found: int(found["stepCount"]) > seen)
    mesh.rlhf("job", "cancel", job)
    found = mesh.ended(job)
    assert (found["state"], len(found["attempts"])) == ("JOB_STATE_CANCELLED", 1), found
    steps = steps_of(mesh, job)
    assert steps == list(range(1, len(steps) + 1)) and len(steps) > seen
