"""The embedded Ray: nobody enters without certificate and token, nothing listens outside, a kill takes all along."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from services.mesh import identity
from services.mesh.processes import procfs
from services.supervisor import embedded
from services.supervisor.embedded import process, ray_head, ray_tls

PROGRAM = """
import ray, sys
ray.init(address=sys.argv[1], log_to_driver=False)
print(ray.get(ray.remote(num_gpus=1)(lambda: "ran").remote()), int(ray.cluster_resources()["GPU"]))
"""


@pytest.fixture
async def head(tmp_path: Path):
    async with embedded.ray(tmp_path / "ray", slots=2, environment=dict(os.environ)) as head:
        yield head


async def status_of(head: embedded.RayHead, token: str) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ray_head.ask_for_nodes(head.address, ray_tls.credentials(head.certificate_file), token)
    return caught.value.code()


async def run_task(address: str, environment: dict[str, str], seconds: float = 120) -> tuple[int, str]:
    """Exit status and output; ended after so long."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PROGRAM, address),
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert child.stdout is not None
    output = asyncio.create_task(child.stdout.read())
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(child.wait(), seconds)
    if child.returncode is None:
        child.kill()
    return await child.wait(), (await output).decode()


async def test_runs_a_task_for_the_holder_of_certificate_and_token_and_for_nobody_else(head: embedded.RayHead) -> None:
    token = identity.read_token(head.token_file)
    assert await status_of(head, "") == grpc.StatusCode.UNAUTHENTICATED
    assert await status_of(head, token[:-1]) == grpc.StatusCode.UNAUTHENTICATED
    # At a time: who is not let in asks again for a while, one that does not speak TLS for a quarter of an hour.
    everybody = ({}, 120), ({"RAY_AUTH_MODE": "disabled"}, 120), ({"RAY_USE_TLS": "0"}, 20)
    asked = [run_task(head.address, {**head.client_environment(), **off}, seconds) for off, seconds in everybody]
    (code, output), *refused = await asyncio.gather(*asked)
    assert code == 0, output
    assert "ran 2" in output
    for code, output in refused:
        assert code != 0
        assert "ran 2" not in output


def listening_addresses(pids: set[int]) -> set[str]:
    """Local addresses (hexadecimal, as the kernel writes them) on which these processes accept TCP connections."""
    inodes = set()
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            try:
                inodes.add(str(descriptor.readlink()).removeprefix("socket:[").removesuffix("]"))
            except OSError:
                continue
    rows = [
        line.split() for table in ("tcp", "tcp6") for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
    ]
    return {row[1].partition(":")[0] for row in rows if row[3] == "0A" and row[9] in inodes}


async def test_listens_on_loopback_only_and_leaves_nothing_when_killed(tmp_path: Path) -> None:
    head = embedded.RayHead(tmp_path / "ray", embedded.free_port(), embedded.default_resources(1), dict(os.environ))
    try:
        async with process.running(head.program(tmp_path / "ray.log")) as running:
            code, output = await run_task(head.address, head.client_environment())
            assert code == 0, output
            members = set(procfs.tree(running.pid))
            assert len(members) > 4
            assert listening_addresses(members) == {"0100007F", "0000000000000000FFFF00000100007F"}
            running.kill()
        await asyncio.sleep(0.5)
        assert not [pid for pid in members if procfs.identify(pid)]
        # A second start on the same port and folder finds nothing in its way, and keeps key and certificate.
        made = head.certificate_file.read_bytes()
        assert head.certificate_file.stat().st_mode & 0o777 == 0o600
        async with process.running(head.program(tmp_path / "ray.log")):
            assert await head.is_ready()
        assert head.certificate_file.read_bytes() == made
    finally:
        shutil.rmtree(head.temporary)
