"""`rlhf up`, `status` and `down` over the real parts: PostgreSQL, NATS, Ray and the services."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from services.mesh.processes import procfs
from services.supervisor import state
from services.supervisor.state import Phase
from tests.fix_mesh import Mesh, embedded_mesh

PROCESSES = [
    "postgres", "nats", "ray", "fork-server", "dataset", "dataset.worker", "trainer", "trainer.worker", "gateway",
]  # fmt: skip


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with embedded_mesh(tmp_path_factory.mktemp("mesh") / "home") as mesh:
        done = mesh.rlhf("up")
        assert done.returncode == 0, done.stderr
        assert all(f"[✓] {name} " in done.stderr for name in PROCESSES)
        yield mesh


def test_status_lists_every_process_and_second_up_starts_nothing(mesh: Mesh) -> None:
    document = mesh.status()
    assert document["up"]
    assert [each["name"] for each in document["processes"]] == PROCESSES
    assert all(each["state"] == "ready" and each["memoryBytes"] > 1_000_000 for each in document["processes"])
    said = mesh.rlhf("status").stderr
    assert document["http"] in said and document["grpc"] in said
    before = mesh.pids()
    again = mesh.rlhf("up")
    assert again.returncode == 0
    assert "is up already" in again.stderr
    assert document["http"] in again.stderr
    assert mesh.pids() == before


def test_up_with_other_settings_says_which_and_how_to_apply_them(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    before = mesh.pids()
    monkeypatch.setitem(mesh.environment, "RLHF_TRAINER_CONCURRENCY", "7")
    monkeypatch.setitem(mesh.environment, "RLHF_TRAINER_SLOT", "2")
    other = mesh.rlhf("up")
    assert other.returncode == 1 and "is up already" in other.stderr
    assert re.search(r"RLHF_TRAINER_CONCURRENCY +not set +7 *\n", other.stderr), other.stderr
    assert "`rlhf down && rlhf up` applies these" in other.stderr
    assert "RLHF_TRAINER_SLOT is no setting and changes nothing; did you mean RLHF_TRAINER_SLOTS" in other.stderr
    monkeypatch.setitem(mesh.environment, "RLHF_TRAINER_CONCURRENCY", "many")
    wrong = mesh.rlhf("up")
    assert wrong.returncode == 2 and "RLHF_TRAINER_CONCURRENCY: must be a number" in wrong.stderr
    assert mesh.pids() == before


def test_nothing_secret_is_open_to_others(mesh: Mesh) -> None:
    assert mesh.home.root.stat().st_mode & 0o777 == 0o700
    for path in (mesh.home.token, mesh.home.endpoints, mesh.home.state, *mesh.home.logs.iterdir()):
        assert path.stat().st_mode & 0o077 == 0, path
    paths = [*mesh.home.root.glob("*/*password"), mesh.home.nats / "seed", mesh.home.ray / "token", mesh.home.token]
    secrets = [path.read_bytes().strip() for path in paths]
    assert len(secrets) == 5
    seen = b"".join(Path(f"/proc/{pid}/cmdline").read_bytes() for pid in mesh.processes())
    seen += b"".join(path.read_bytes() for path in mesh.home.logs.iterdir())
    assert not any(secret in seen for secret in secrets)


@pytest.mark.parametrize("name", PROCESSES)
def test_killed_process_comes_back_where_it_was(mesh: Mesh, name: str) -> None:
    before = mesh.status()["processes"]
    old = next(each for each in before if each["name"] == name)
    os.kill(old["pid"], signal.SIGKILL)
    new = wait_for_restart(mesh, name, old["restarts"])
    assert new["pid"] not in (0, old["pid"])
    assert new["address"] == old["address"]


def wait_for_restart(mesh: Mesh, name: str, restarts: int) -> dict[str, Any]:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        new = next(each for each in mesh.status()["processes"] if each["name"] == name)
        if new["state"] == "ready" and new["restarts"] > restarts:
            return new
        time.sleep(0.2)
    raise AssertionError(f"{name} did not come back:\n{mesh.home.log(name).read_text()[-2000:]}")


def test_killed_supervisor_leaves_ray_which_the_next_up_takes_over_and_data_stay(mesh: Mesh) -> None:
    before, ports = mesh.pids(), mesh.endpoints()
    with psycopg.connect(ports["postgres_url"]) as connection:
        connection.execute("CREATE TABLE public_note AS SELECT 42 AS value")
    known = state.read(mesh.home.state)
    assert known is not None
    os.kill(known.supervisor.pid, signal.SIGKILL)
    assert mesh.rlhf("status").returncode == 3
    done = mesh.rlhf("up")
    assert done.returncode == 0, done.stderr
    after = mesh.pids()
    assert [name for name in after if after[name] == before[name]] == ["ray"]
    assert len(procfs.in_folder(mesh.home.postgres / "data")) > 1
    with psycopg.connect(mesh.endpoints()["postgres_url"]) as connection:
        assert connection.execute("SELECT value FROM public_note").fetchone() == (42,)
    assert {**mesh.endpoints(), "pid": 0} == {**ports, "pid": 0}


def test_down_leaves_no_process_and_up_again_finds_its_data_and_addresses(mesh: Mesh) -> None:
    before = mesh.endpoints()
    with psycopg.connect(before["postgres_url"]) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 43 AS value")
    down = mesh.rlhf("down")
    assert down.returncode == 0, down.stderr
    assert "the mesh is down" in down.stderr
    assert all(f"  {name} " in down.stderr for name in PROCESSES)
    assert mesh.processes() == []
    assert mesh.rlhf("status").returncode == 3
    assert "not up" in mesh.rlhf("down").stderr
    assert mesh.rlhf("up").returncode == 0
    assert {**mesh.endpoints(), "pid": 0} == {**before, "pid": 0}
    with psycopg.connect(mesh.endpoints()["postgres_url"]) as connection:
        assert connection.execute("SELECT value FROM kept").fetchone() == (43,)


def test_forced_down_kills_everything_and_up_recovers(mesh: Mesh) -> None:
    assert mesh.rlhf("down", "--force").returncode == 0
    assert mesh.processes() == []
    assert mesh.rlhf("up").returncode == 0
    final = state.read(mesh.home.state)
    assert final is not None
    assert final.phase is Phase.READY
    assert not any(each.adopted for each in final.processes)
