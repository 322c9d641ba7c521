"""The embedded Ray: who lacks the token is refused, nothing listens outside, a kill takes everything along."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from services.mesh import embedded, identity
from services.mesh.embedded import process, procfs, ray_head

PROGRAM = """
import ray, sys
ray.init(address=sys.argv[1], log_to_driver=False)
print(ray.get(ray.remote(num_gpus=1)(lambda: "ran").remote()), int(ray.cluster_resources()["GPU"]))
"""


@pytest.fixture
async def head(tmp_path: Path):
    async with embedded.ray(tmp_path / "ray", slots=2, environment=dict(os.environ)) as head:
        yield head


async def status_of(address: str, token: str) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ray_head.ask_for_nodes(address, token)
    return caught.value.code()


async def run_task(address: str, environment: dict[str, str]) -> tuple[int, str]:
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PROGRAM, address),
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    output, _ = await child.communicate()
    return child.returncode or 0, output.decode()


async def test_runs_a_task_for_the_holder_of_the_token_and_for_nobody_else(head: embedded.RayHead) -> None:
    token = identity.read_token(head.token_file)
    assert await status_of(head.address, "") == grpc.StatusCode.UNAUTHENTICATED
    assert await status_of(head.address, token[:-1]) == grpc.StatusCode.UNAUTHENTICATED
    code, output = await run_task(head.address, head.client_environment())
    assert code == 0, output
    assert "ran 2" in output
    without = {**head.client_environment(), "RAY_AUTH_MODE": "disabled"}
    code, output = await run_task(head.address, without)
    assert code != 0
    assert "ran" not in output.splitlines()[-1]


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
        # A second start on the same port and folder finds nothing in its way.
        async with process.running(head.program(tmp_path / "ray.log")):
            assert await head.is_ready()
    finally:
        shutil.rmtree(head.temporary)
