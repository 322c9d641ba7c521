"""What a new service with jobs has to write: the echo service of tests/fakes, reached as all are, by the gateway.

Its jobs are processes that outlive their worker, have events, metrics and a place in the queue, and are cancelled and
tried again; none of that is written there.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
import pytest
from grpc_tools import protoc
from typer.testing import CliRunner, Result

from services.cli.session import Options
from services.gateway.app import build as build_gateway
from services.gateway.settings import GatewaySettings
from services.mesh import catalog
from services.mesh.rpc.server import Process
from services.mesh.settings import Environment
from tests.fix_member import mesh_settings

ROOT = Path(__file__).parents[3]
ECHO = ROOT / "tests" / "fakes" / "echo"
JOBS = "/v1/projects/default/echoJobs"


@pytest.fixture(scope="session")
def echo_contract(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Generate the code of its contract, beside that of the real ones."""
    sources, generated = tmp_path_factory.mktemp("proto"), tmp_path_factory.mktemp("gen")
    folder = sources / "rlhf" / "echo" / "v1"
    folder.mkdir(parents=True)
    (folder / "echo_service.proto").write_bytes((ECHO / "echo_service.proto").read_bytes())
    includes = [sources, ROOT / "proto", ROOT / "proto" / "vendor", files("grpc_tools") / "_proto"]
    arguments = [f"-I{path}" for path in includes]
    arguments += [f"--python_out={generated}", f"--grpc_python_out={generated}", "rlhf/echo/v1/echo_service.proto"]
    assert protoc.main(["protoc", *arguments]) == 0
    sys.path.append(str(generated))


@dataclass
class Echo:
    http: httpx.AsyncClient
    home: Path
    values: Any
    workers: list[Process]
    # Of the gateway's gRPC port.
    server: str

    async def rlhf(self, *words: str) -> Result:
        """`rlhf echo WORDS`"""
        from tests.fakes.echo import command

        options = Options(server=self.server, token_file=self.home / "token")
        return await asyncio.to_thread(CliRunner().invoke, command.app, words, obj=options)

    async def start_worker(self) -> Process:
        from tests.fakes.echo import service

        worker = service.build_worker(self.values)
        await worker.start()
        self.workers.append(worker)
        return worker

    async def create(self, id_: str, **job: Any) -> httpx.Response:
        return await self.http.post(JOBS, params={"echoJobId": id_, "requestId": REQUEST_ID}, json=job)

    async def stream(self, id_: str, what: str) -> list[dict[str, Any]]:
        """Until it ends, without heartbeats."""
        async with asyncio.timeout(60), self.http.stream("GET", f"{JOBS}/{id_}:{what}") as answer:
            assert answer.status_code == 200
            return [json.loads(line) async for line in answer.aiter_lines() if len(json.loads(line)) > 1]

    async def until_step(self, id_: str, step: int) -> None:
        async with asyncio.timeout(60):
            while int((await self.http.get(f"{JOBS}/{id_}")).json().get("stepCount", 0)) < step:  # noqa: ASYNC110
                await asyncio.sleep(0.02)


REQUEST_ID = "6a2c9a14-7f0e-4d5b-9d7c-7c2f6f3a1e55"


@pytest.fixture
async def echo(
    home: Path, postgres_url: str, nats_url: str, echo_contract: None, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Echo]:
    from tests.fakes.echo import service

    monkeypatch.setattr(catalog, "SERVICES", (*catalog.SERVICES, "echo"))
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'proto' / 'gen'}")
    settings = mesh_settings(home, postgres_url=postgres_url, nats_url=nats_url)
    server = service.build(settings)
    await server.start()
    own = {"RLHF_HOME": str(home), "RLHF_ECHO_TARGET": f"127.0.0.1:{server.port}"}
    gateway = build_gateway(GatewaySettings.read(Environment(own)))
    await gateway.start()
    token = (home / "token").read_text().strip()
    headers = {"authorization": f"Bearer {token}"}
    base_url = f"http://127.0.0.1:{gateway.http_port}"
    async with httpx.AsyncClient(base_url=base_url, headers=headers, timeout=30, trust_env=False) as http:
        found = Echo(http, home, settings, [], f"127.0.0.1:{gateway.port}")
        yield found
    for worker in found.workers:
        await worker.stop()
    await gateway.stop()
    await server.stop()


async def test_a_job_is_made_once_followed_and_listed(echo: Echo) -> None:
    refused = await echo.create("empty", times="3")
    assert refused.status_code == 400 and "echo_job.text" in refused.text
    made = await echo.create("first", text="hello", times="3")
    assert made.status_code == 200 and made.json()["state"] == "JOB_STATE_QUEUED"
    again = await echo.create("first", text="hello", times="3")
    assert again.json()["name"] == made.json()["name"]
    await echo.start_worker()
    events = await echo.stream("first", "streamEvents")
    states = [event["echoJob"]["state"] for event in events]
    assert states == ["JOB_STATE_QUEUED", "JOB_STATE_RUNNING", "JOB_STATE_SUCCEEDED"]
    points = [point for batch in await echo.stream("first", "streamMetrics") for point in batch["points"]]
    assert [(point["step"], point["value"]) for point in points] == [("1", 5.0), ("2", 10.0), ("3", 15.0)]
    listed = await echo.rlhf("list")
    assert "first" in listed.stdout and "SUCCEEDED" in listed.stdout and "hello" in listed.stdout
    shown = await echo.rlhf("metrics", "first", "-o", "csv")
    assert shown.stdout.splitlines()[1].startswith("echo/characters,1,5.0")
    (listed,) = (await echo.http.get(JOBS)).json()["echoJobs"]
    assert (listed["text"], listed["stepCount"], len(listed["attempts"])) == ("hello", "3", 1)


async def test_a_run_that_is_killed_is_started_again_and_one_that_is_cancelled_stops(
    echo: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.mesh.runs.handler._RETRY_SECONDS", 0.05)
    worker = await echo.start_worker()
    await echo.create("long", text="x", times="100000")
    await echo.until_step("long", 2)
    (runner,) = echo.home.glob("echo/*/attempts/1/runner.json")
    os.kill(json.loads(runner.read_text())["pid"], signal.SIGKILL)
    async with asyncio.timeout(60):
        while len((await echo.http.get(f"{JOBS}/long")).json()["attempts"]) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    # The worker goes, the run does not.
    await worker.stop()
    await echo.start_worker()
    cancelled = await echo.rlhf("cancel", "long", "-o", "json")
    assert cancelled.exit_code == 0, cancelled.output
    watched = await echo.rlhf("watch", "long")
    assert watched.exit_code == 1 and "cancelled" in watched.output
    last = (await echo.stream("long", "streamEvents"))[-1]["echoJob"]
    assert last["state"] == "JOB_STATE_CANCELLED" and len(last["attempts"]) == 2
    assert (await echo.http.post(f"{JOBS}/long:cancel", json={})).status_code == 400


def test_it_is_short() -> None:
    """Beside a line of the catalog, this is all: what grows here has been written for one service and is of all."""
    lines = [line for path in ECHO.glob("*.py") for line in path.read_text().splitlines() if line.strip()]
    assert len(lines) <= 150
