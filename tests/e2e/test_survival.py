"""A mesh in training whose parts are killed, stopped and knocked at: it goes on, lets nobody in, leaves nothing."""

from __future__ import annotations

import csv
import io
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import psycopg
import pytest

from services.mesh.processes import procfs
from services.supervisor import leftovers, state
from services.supervisor.embedded import Home
from tests.fix_live import GRPO, GRPO_PARAMS, SFT, SFT_PARAMS, LiveMesh, alive, live_home, wait_until
from tests.fix_ports import Listener, listeners
from tests.fix_rays_ports import enters_ray, enters_ray_or, enters_rays_http, status_of

pytestmark = pytest.mark.slow

SECURITY = Path(__file__).parents[2] / "docs" / "security.md"


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveMesh]:
    """Of its own: it is killed as a whole. It waits less long for a sign of life than by default."""
    with live_home(tmp_path_factory.mktemp("survival"), RLHF_SUPERVISOR_PATIENCE_SECONDS="15") as mesh:
        yield mesh
        home = Home(mesh.home)
        mesh.rlhf("down")
        assert processes(mesh) == []
        assert not home.temporary.exists()
        assert not home.ray_temporary.exists()
        assert list(mesh.home.rglob("*.partial")) == []


@pytest.fixture(scope="module")
def training(mesh: LiveMesh) -> str:
    """A reinforcement learning job, with every kind of process that there is, in the middle of its steps."""
    job = mesh.train("grpo", *GRPO, **GRPO_PARAMS, steps=900, epochs=100)
    mesh.until(job, lambda found: int(found["stepCount"]) >= 1)
    return job


def processes(mesh: LiveMesh) -> list[int]:
    """With the sessions of those that are marked: a process that names itself may overwrite its environment."""
    marked = [each.pid for each in procfs.with_variable(leftovers.MARK, str(mesh.home))]
    known = state.read(Home(mesh.home).state)
    marked += [each.id.pid for each in known.processes if each.id is not None] if known is not None else []
    members = {member for pid in marked for member in procfs.session_members(pid)}
    return sorted(members.union(marked, procfs.in_folder(mesh.home / "postgres" / "data")))


def steps_of(mesh: LiveMesh, job: str, metric: str) -> list[int]:
    text = mesh.rlhf("job", "metrics", job, "--metric", metric, "-o", "csv").stdout
    return [int(row["step"]) for row in csv.DictReader(io.StringIO(text))]


def documented() -> dict[str, str]:
    """From the table of docs/security.md: how a process's command begins, and how one authenticates at its ports."""
    rows = re.findall(r"^\| `([^`]+)` \|[^|]*\|[^|]*\|[^|]*\| ([^|]+) \|$", SECURITY.read_text(), re.MULTILINE)
    return {command: how.strip() for command, how in rows}


def how_to_enter(listener: Listener) -> str:
    words = [word.rpartition("/")[2] for word in listener.title.split()]
    title = " ".join(words)
    found = [command for command in documented() if title.startswith(command)]
    assert found, f"{title} on port {listener.port} has no row in docs/security.md"
    return documented()[max(found, key=len)]


def test_every_port_is_loopback_documented_and_closed_to_who_has_no_secret(mesh: LiveMesh, training: str) -> None:
    del training
    found = listeners(processes(mesh))
    assert len(found) >= 15
    assert [each for each in found if not each.loopback] == []
    kinds = {how_to_enter(each) for each in found}
    assert kinds == set(documented().values()), "a row of docs/security.md has no port any more, or a port has no row"
    entered = [each for each in found if ENTER[how_to_enter(each)](mesh.home, each.port)]
    # Ray's idle workers come and go.
    assert [each for each in entered if each in listeners(processes(mesh))] == []


def enters_by_grpc(port: int) -> bool:
    """With no token, a wrong one, and an old-fashioned one: whether any call but health gets an answer."""
    calls = ("/rlhf.dataset.v1.DatasetService/ListFormats", "/rlhf.trainer.v1.TrainerService/ListRewards")
    calls += ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",)
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        for token in (None, "Bearer wrong", "Basic cm9vdDo="):
            metadata = (("authorization", token),) if token else ()
            for path in calls:
                call = channel.stream_stream(path)(iter([b""]), timeout=10, metadata=metadata)
                if status_of(lambda call=call: list(call)) not in (
                    grpc.StatusCode.UNAUTHENTICATED,
                    grpc.StatusCode.UNIMPLEMENTED,
                ):
                    return True
    return False


def enters_by_http(port: int) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    tries = [{}, {"Authorization": "Bearer wrong"}, {"Origin": "https://evil.example"}, {"Host": "evil.example"}]
    websocket = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
    websocket["Sec-WebSocket-Key"] = "dGhlIHNhbXBsZSBub25jZQ=="
    for headers in (*tries, *({**websocket, **each} for each in tries)):
        request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/projects/default/datasets", headers=headers)
        try:
            opener.open(request, timeout=10)
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):
                continue
        return True
    return False


def enters_postgres(port: int) -> bool:
    for user in ("postgres", "rlhf", "nobody"):
        for password in ("", "wrong"):
            try:
                psycopg.connect(f"host=127.0.0.1 port={port} user={user} password={password} dbname=rlhf").close()
            except psycopg.OperationalError:
                continue
            return True
    return False


def enters_nats(port: int) -> bool:
    command = b'CONNECT {"verbose":true,"pedantic":false,"user":"rlhf","pass":"wrong"}\r\nPING\r\n'
    return b"PONG" in talk(port, command) or b"PONG" in talk(port, b"PING\r\n")


def enters_the_queue(port: int) -> bool:
    """ZMTP 3.0 by its NULL mechanism, which is everybody's; one that wants CURVE says so and ends it."""
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
    ready = b"\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"
    return b"READY" in talk(port, greeting + ready)


def enters_gloo(port: int) -> bool:
    """It has no authentication, which docs/security.md says; what it takes is numbers for a collective, not code."""
    return talk(port, b"\0" * 64) != b""


def talk(port: int, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), 5) as connection:
        connection.settimeout(1)
        received = b""
        try:
            connection.sendall(data)
            while part := connection.recv(4096):
                received += part
        except OSError:
            pass
    return received


# By what docs/security.md says of each port.
ENTER: dict[str, Callable[[Path, int], bool]] = {
    "token of the home": lambda _, port: enters_by_grpc(port) if _is_grpc(port) else enters_by_http(port),
    "password of PostgreSQL, which is never sent": lambda _, port: enters_postgres(port),
    "certificate of NATS, and its key, which is never sent": lambda _, port: enters_nats(port),
    "certificate and token of Ray": enters_ray,
    "token of Ray": lambda _, port: enters_rays_http(port),
    "certificate and token of Ray; key of the run": enters_ray_or(enters_the_queue),
    "certificate and token of Ray; none for gloo": enters_ray_or(enters_gloo),
}


def _is_grpc(port: int) -> bool:
    """A server of HTTP/2 sends its settings first."""
    return talk(port, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")[3:4] == b"\4"


def test_stopped_processes_are_noticed_and_training_goes_on(mesh: LiveMesh, training: str) -> None:
    run, before = mesh.run_pid(training), mesh.pids()
    stopped = ("dataset", "trainer.worker", "gateway", "nats")
    for name in stopped:
        os.kill(before[name], signal.SIGSTOP)
    wait_until(lambda: all(mesh.pids().get(name, 0) not in (0, before[name]) for name in stopped), "new ones", 120)
    found = mesh.job(training)
    assert found["state"] == "JOB_STATE_RUNNING"
    mesh.until(training, lambda now: int(now["stepCount"]) > int(found["stepCount"]))
    assert mesh.run_pid(training) == run


def test_dead_supervisor_ends_the_services_but_no_training_and_two_ups_at_once_make_one_mesh(
    mesh: LiveMesh, training: str
) -> None:
    run = mesh.run_pid(training)
    known = state.read(Home(mesh.home).state)
    assert known is not None
    data = mesh.home / "postgres" / "data"
    os.kill(known.supervisor.pid, signal.SIGKILL)
    wait_until(lambda: not procfs.in_folder(data), "PostgreSQL to go", 60)
    assert mesh.rlhf("status", check=False).returncode == 3
    assert alive(run)
    command = [sys.executable, "-m", "services.cli", "up"]
    ups = [subprocess.Popen(command, env=mesh.environment, stderr=subprocess.DEVNULL) for _ in range(2)]
    assert 0 in [up.wait(200) for up in ups]
    postmasters = [pid for pid in procfs.in_folder(data) if pid in procfs.session_members(pid) and leads(pid, data)]
    assert len(postmasters) == 1
    found = mesh.job(training)
    mesh.until(training, lambda now: int(now["stepCount"]) > int(found["stepCount"]))
    assert mesh.run_pid(training) == run
    assert len(mesh.job(training)["attempts"]) == 1
    steps = steps_of(mesh, training, "reward/mean")
    assert steps == list(range(1, len(steps) + 1))
    mesh.rlhf("job", "cancel", training)
    assert mesh.ended(training)["state"] == "JOB_STATE_CANCELLED"
    wait_until(lambda: not alive(run), "the run to be gone", 20)


def leads(pid: int, data: Path) -> bool:
    """Whether it is a server and not one of its children, which work in the same folder."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) not in procfs.in_folder(data)


def test_run_whose_ray_is_killed_goes_on_from_its_checkpoint(mesh: LiveMesh) -> None:
    job = mesh.train("sft", *SFT, **SFT_PARAMS, steps=500, epochs=200, save_every_steps=50)
    checkpoints = lambda: mesh.json("checkpoint", "list", job)  # noqa: E731
    wait_until(lambda: any(each["state"] == "STATE_READY" for each in checkpoints()), "a checkpoint", 300, pause=1)
    mesh.kill("ray")
    found = mesh.ended(job)
    assert found["state"] == "JOB_STATE_SUCCEEDED", found
    assert 2 <= len(found["attempts"]) <= 4
    assert int(found["attempts"][-1]["resumedFromStep"]) >= 50
    assert steps_of(mesh, job, "train/loss") == list(range(1, 501))
