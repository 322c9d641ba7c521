"""`python -m services.gateway` as a process: starts, tells that it is ready, stops on SIGTERM, refuses a bad set-up."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


async def launch(home: Path, **environment: str) -> asyncio.subprocess.Process:
    command = (sys.executable, "-m", "services.gateway")
    values = {key: value for key, value in os.environ.items() if not key.startswith("RLHF_")}
    values |= {"RLHF_HOME": str(home)} | environment
    return await asyncio.create_subprocess_exec(*command, env=values, stderr=asyncio.subprocess.PIPE)


async def test_starts_answers_and_stops(tmp_path: Path, services: Any) -> None:
    (tmp_path / "token").write_text("t")
    port, ready = free_port(), tmp_path / "ready"
    target = f"127.0.0.1:{services.port}"
    process = await launch(
        tmp_path,
        RLHF_GATEWAY_HTTP_LISTEN=f"127.0.0.1:{port}",
        RLHF_READY_FILE=str(ready),
        RLHF_DATASET_TARGET=target,
    )
    try:
        for _ in range(1000):
            if ready.exists():
                break
            await asyncio.sleep(0.02)
        async with httpx.AsyncClient(trust_env=False) as client:
            assert (await client.get(f"http://127.0.0.1:{port}/healthz")).status_code == 200
    finally:
        process.send_signal(signal.SIGTERM)
        _, log = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 0, log.decode()


@pytest.mark.parametrize(
    ("environment", "why"),
    [({}, "token"), ({"RLHF_TRAINER_TARGET": "nonsense", "RLHF_GATEWAY_GRPC_LISTEN": "x"}, "RLHF_TRAINER_TARGET")],
)
async def test_bad_set_up_ends_it_with_a_reason(tmp_path: Path, environment: dict[str, str], why: str) -> None:
    process = await launch(tmp_path, **environment)
    _, log = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 1
    assert why in log.decode() and "Traceback" not in log.decode()
