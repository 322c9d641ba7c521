"""The embedded Ray and another user of the machine, who calls it or takes the port of one of its processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import pytest

from services.mesh import identity
from services.mesh.processes import procfs
from services.supervisor import embedded
from services.supervisor.embedded import ray_head, ray_tls
from tests.fix_member import until
from tests.fix_ports import Listener, listeners
from tests.fix_rays_rogue import rogue

START_SYNC = "/ray.rpc.syncer.RaySyncer/StartSync"
# Tries the port again and again as another user, with every option that lets sockets share one.
THIEF = """
import os, socket, sys, time
port, seconds = int(sys.argv[1]), float(sys.argv[2])
if os.getuid() == 0:
    os.setgroups([]); os.setuid(65534)
end = time.monotonic() + seconds
print("started", flush=True)
while time.monotonic() < end:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if os.getuid() == 65534:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            taken.bind(("127.0.0.1", port))
        except OSError:
            continue
        print("took it")
        break
"""
OTHER_USER = """
import os, socket, sys
os.setgroups([]); os.setuid(65534)
with socket.socket() as connection:
    answer = b""
    connection.connect(("127.0.0.1", int(sys.argv[1])))
    try:
        head = f"POST /get_runtime_envs_info HTTP/1.1\\r\\nHost: x\\r\\nAuthorization: Bearer {sys.argv[2]}\\r\\n"
        connection.sendall(head.encode() + b"Content-Length: 0\\r\\n\\r\\n")
        connection.shutdown(getattr(socket, sys.argv[3]))
        answer = connection.recv(100)
    except OSError:
        pass
    print(answer)
"""
PROGRAM = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False); print(ray.get(ray.put('there')))"


@pytest.fixture
async def head(tmp_path: Path) -> AsyncIterator[embedded.RayHead]:
    async with embedded.ray(tmp_path / "ray", slots=1, environment=dict(os.environ)) as head:
        # The agent comes after the node, which is ready without it.
        await until(lambda: any("RuntimeEnvAgent" in each.title for each in ports(head)), 120)
        yield head


def pid_of(head: embedded.RayHead, word: str) -> int:
    """Of the process of this Ray with `word` in its command: ours are the ones that know the session's folder."""
    (gcs,) = {each.pid for each in _listeners() if each.port == head.port}
    session = set(procfs.session_members(os.getsid(gcs)))
    (found,) = [pid for pid in session if word in _title(pid)]
    return found


def _listeners() -> list[Listener]:
    return listeners(int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())


def _title(pid: int) -> str:
    with contextlib.suppress(OSError):
        # The raylet's command has that of every other process in it, after its own first words.
        return Path(f"/proc/{pid}/cmdline").read_text("utf-8", "replace").partition("\0--")[0]
    return ""


def ports(head: embedded.RayHead) -> list[Listener]:
    return listeners(procfs.session_members(os.getsid(pid_of(head, "gcs_server"))))


async def code_of(channel: grpc.aio.Channel, call: Callable[[grpc.aio.Channel], object]) -> grpc.StatusCode:
    async with channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asyncio.wait_for(call(channel), 20)  # type: ignore[arg-type]
    return caught.value.code()


async def start_sync(channel: grpc.aio.Channel) -> None:
    """With no metadata at all."""
    async for _ in channel.stream_stream(START_SYNC)(iter([b""]), timeout=10):
        pass


async def nodes(channel: grpc.aio.Channel) -> None:
    await channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetAllNodeInfo")(b"", timeout=10)


def channels(address: str, head: embedded.RayHead, made: Path) -> dict[str, grpc.aio.Channel]:
    """What a stranger can come with: nothing, the certificate alone, which every handshake shows, one of his own."""
    own = head.certificate_file.read_bytes()
    shown = own[own.index(b"-----BEGIN CERTIFICATE") :]
    other = made.read_bytes()
    options = [("grpc.enable_http_proxy", 0)]
    keys = {
        "a certificate that anybody can see": grpc.ssl_channel_credentials(shown),
        "a certificate of his own": grpc.ssl_channel_credentials(shown, other, other),
    }
    return {
        "no certificate": grpc.aio.insecure_channel(address, options),
        **{name: grpc.aio.secure_channel(address, each, options) for name, each in keys.items()},
    }


async def test_stranger_reaches_no_handler_of_any_process_and_cannot_abort_one(
    head: embedded.RayHead, tmp_path: Path
) -> None:
    made = tmp_path / "his.pem"
    ray_tls.ensure(made)
    found = [each for each in ports(head) if "RuntimeEnvAgent" not in each.title]
    assert {each.port for each in found} > {head.port}
    for listener in found:
        address = f"127.0.0.1:{listener.port}"
        for call in (start_sync, nodes):
            for kind, channel in channels(address, head, made).items():
                code = await code_of(channel, call)
                assert code == grpc.StatusCode.UNAVAILABLE, (listener, kind, code)
    keys = ray_tls.credentials(head.certificate_file)
    # Who holds the key still needs the token.
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ray_head.ask_for_nodes(head.address, keys, "wrong")
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert await head.is_ready()


async def test_no_job_can_be_submitted_and_one_port_speaks_http(head: embedded.RayHead) -> None:
    assert [each for each in ports(head) if "DashboardAgent" in each.title] == []
    answers = {}
    for listener in ports(head):
        for path in ("/api/job_agent/jobs/", "/api/jobs/", "/get_or_create_runtime_env"):
            answers[listener.title.split()[0], path] = await asyncio.to_thread(http_status, listener.port, path)
    assert {status for status in answers.values() if status is not None} == {403}
    assert {title for (title, _), status in answers.items() if status is not None} == {"ray::RuntimeEnvAgent"}
    token = identity.read_token(head.token_file)
    (agent,) = [each.port for each in ports(head) if "RuntimeEnvAgent" in each.title]
    # Nor by the holder of the token: there is no such route.
    assert await asyncio.to_thread(http_status, agent, "/api/job_agent/jobs/", token) == 404


def http_status(port: int, path: str, token: str = "", body: bytes = b'{"entrypoint": "id"}') -> int | None:
    """Of a POST; None where no HTTP is spoken."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, headers)
    try:
        return opener.open(request, timeout=10).status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None
    except Exception as error:
        assert type(error).__name__ in ("BadStatusLine", "RemoteDisconnected"), error
        return None


@pytest.mark.parametrize("speaks", ["anything", "TLS"])
async def test_rogue_in_the_port_of_the_control_service_hears_no_secret(
    head: embedded.RayHead, tmp_path: Path, speaks: str
) -> None:
    """The raylet, its agents and workers, a client, and our own question whether Ray is ready all come to it."""
    token = identity.read_token(head.token_file)
    made = None
    if speaks == "TLS":
        ray_tls.ensure(made := tmp_path / "his.pem")
    driver = await start_driver(head)
    gcs = pid_of(head, "gcs_server")
    os.kill(gcs, signal.SIGKILL)
    # Free before `ray start` has seen the death and ended the others.
    with rogue(head.port, made) as thief:
        with pytest.raises(grpc.aio.AioRpcError):
            await head.is_ready()
        client = await run(sys.executable, "-c", PROGRAM, head.address, environment=head.client_environment())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(client.wait(), 15)
        assert thief.connections >= 2
        assert not thief.heard(token), "the token of Ray"
        assert not thief.heard("authorization") and not thief.heard("/ray.rpc")
        if made is not None:
            assert thief.refused and not thief.accepted
            assert thief.received == b""
    for each in (client, driver):
        with contextlib.suppress(ProcessLookupError):
            each.kill()
        await each.wait()


async def start_driver(head: embedded.RayHead) -> asyncio.subprocess.Process:
    """A program of Ray's that is connected and waits."""
    program = f"{PROGRAM}; sys.stdout.flush(); import time; time.sleep(600)"
    driver = await run(sys.executable, "-c", program, head.address, environment=head.client_environment())
    assert driver.stdout is not None
    async with asyncio.timeout(60):
        while b"there" not in await driver.stdout.readline():
            assert driver.returncode is None
    return driver


async def run(*command: str, environment: dict[str, str] | None = None) -> asyncio.subprocess.Process:
    told = {**os.environ, **(environment or {})}
    return await asyncio.create_subprocess_exec(*command, env=told, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


async def test_nobody_takes_the_port_of_the_agent_that_hears_the_token_by_http(head: embedded.RayHead) -> None:
    """The raylet believes what answers there; it ends half a second after its agent has."""
    agent, raylet = pid_of(head, "RuntimeEnvAgent"), pid_of(head, "/raylet/raylet")
    (port,) = [each.port for each in ports(head) if each.pid == agent]
    thief = await run(sys.executable, "-c", THIEF, str(port), "5")
    assert thief.stdout is not None
    assert await thief.stdout.readline() == b"started\n"
    os.kill(agent, signal.SIGKILL)
    async with asyncio.timeout(60):
        while procfs.identify(raylet):  # noqa: ASYNC110 - /proc tells nobody of an end
            await asyncio.sleep(0.01)
    rest, _ = await thief.communicate()
    assert rest == b""


async def test_agent_that_listens_by_http_hears_its_own_user_alone_whatever_the_token(head: embedded.RayHead) -> None:
    (port,) = [each.port for each in ports(head) if "RuntimeEnvAgent" in each.title]
    token = identity.read_token(head.token_file)
    assert await asyncio.to_thread(http_status, port, "/get_runtime_envs_info", token, b"") == 200
    if os.getuid() != 0:
        pytest.skip("to be another user takes root")
    for ending in ("SHUT_RD", "SHUT_WR", "SHUT_RDWR"):
        # The kernel's row of a connection belongs to nobody once it is half closed.
        other = await run(sys.executable, "-c", OTHER_USER, str(port), token, ending)
        answer, _ = await other.communicate()
        assert (other.returncode, answer) == (0, b"b''\n"), ending
