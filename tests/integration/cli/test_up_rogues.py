"""Another user of the machine who takes the place of what dies in a mesh that is up: nobody tells him a secret."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.supervisor import state
from tests.fix_mesh import Mesh, embedded_mesh
from tests.fix_ports import listeners
from tests.fix_rogue import rogue

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """Ray is named as another's, which saves its start."""
    with embedded_mesh(tmp_path_factory.mktemp("rogues") / "home", RLHF_RAY_ADDRESS="127.0.0.1:1") as mesh:
        done = mesh.rlhf("up")
        assert done.returncode == 0, done.stderr
        yield mesh


def wait_until(holds: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.05)


def test_services_have_no_port(mesh: Mesh) -> None:
    services = {name: pid for name, pid in mesh.pids().items() if name.startswith(("dataset", "trainer"))}
    assert len(services) == 4
    assert listeners(services.values()) == []
    assert len(listeners([mesh.pids()["gateway"]])) == 2


def test_no_process_has_a_secret_in_its_environment_and_each_knows_of_what_it_needs(mesh: Mesh) -> None:
    paths = [mesh.home.token, mesh.home.nats / "seed", *mesh.home.postgres.glob("*password")]
    secrets = [path.read_bytes().strip() for path in paths]
    assert len(secrets) == 4
    known = {}
    for name, pid in mesh.pids().items():
        environment = Path(f"/proc/{pid}/environ").read_bytes()
        assert b"RLHF_SUPERVISED_HOME=" in environment
        assert not any(secret in environment for secret in secrets), name
        known[name] = [part for part in ("POSTGRES", "NATS") if f"RLHF_{part}_URL=".encode() in environment]
    assert not any(secret in mesh.home.endpoints.read_bytes() for secret in secrets)
    assert known == {
        "postgres": [], "nats": [], "gateway": [],
        "dataset": ["POSTGRES", "NATS"], "trainer": ["POSTGRES", "NATS"],
        "dataset.worker": ["POSTGRES"], "trainer.worker": ["POSTGRES"],
    }  # fmt: skip


def test_nobody_takes_the_place_of_a_service_that_is_killed(mesh: Mesh, tmp_path: Path) -> None:
    told = mesh.endpoints()
    with rogue(tmp_path, *told["services"].values(), told["socket"]) as heard:
        wait_until(lambda: bool(heard.read_text()))
        for service in ("dataset", "trainer", "gateway"):
            killed = mesh.pids()[service]
            os.kill(killed, signal.SIGKILL)
            noun = "model" if service == "trainer" else "dataset"
            mesh.rlhf(noun, "list")
            wait_until(lambda killed=killed, service=service: mesh.pids()[service] not in (0, killed))
            wait_until(lambda noun=noun: mesh.rlhf(noun, "list").returncode == 0)
        assert heard.read_text() == "HERE\n"


def test_whoever_has_the_addresses_of_a_mesh_whose_supervisor_was_killed_hears_nothing(
    mesh: Mesh, tmp_path: Path
) -> None:
    told, known = mesh.endpoints(), state.read(mesh.home.state)
    assert known is not None
    with rogue(tmp_path, told["socket"], told["grpc"]) as heard:
        wait_until(lambda: bool(heard.read_text()))
        os.kill(known.supervisor.pid, signal.SIGKILL)
        wait_until(lambda: f"TAKEN {told['grpc']}" in heard.read_text())
        assert mesh.home.endpoints.exists()
        done = mesh.rlhf("dataset", "list")
        assert done.returncode == 3
        assert "the mesh is not running any more" in done.stderr and "run `rlhf up`" in done.stderr
        assert heard.read_text() == f"HERE\nTAKEN {told['grpc']}\n"
    assert mesh.rlhf("up").returncode == 0
    assert mesh.rlhf("dataset", "list").returncode == 0
