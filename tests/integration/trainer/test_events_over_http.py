"""A job's events through the gateway, as a browser has them: one WebSocket that tells, and takes the cancel."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
import websockets.exceptions
from websockets.asyncio.client import connect

from services.gateway.app import Gateway, build
from services.gateway.settings import GatewaySettings
from services.mesh.settings import Environment
from tests.integration.trainer.test_runs import Bench
from tests.integration.trainer.test_runs import bench as bench

EVENTS = {"trainingJob", "checkpoint", "jobError"}


@pytest.fixture
async def gateway(bench: Bench) -> Any:
    values = {"RLHF_HOME": str(bench.home), "RLHF_TRAINER_TARGET": f"127.0.0.1:{bench.trainer_port}"}
    running = build(GatewaySettings.read(Environment(values)))
    await running.start()
    yield running
    await running.stop()


async def test_a_job_is_watched_and_cancelled_over_one_websocket(
    bench: Bench, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.start_worker({"step_seconds": 0.1, "save_at": [2]}, monkeypatch)
    name = await bench.create(steps=2000)
    headers = {"authorization": f"Bearer {(bench.home / 'token').read_text().strip()}"}
    address = f"ws://127.0.0.1:{gateway.http_port}/v1/{name}:streamEvents"
    told: list[dict[str, Any]] = []
    async with asyncio.timeout(60), connect(address, additional_headers=headers, proxy=None) as socket:
        try:
            while True:
                told.append(json.loads(await socket.recv()))
                if told[-1].get("checkpoint", {}).get("state") == "STATE_READY":
                    await socket.send('{"id": 1, "cancel": {}}')
        except websockets.exceptions.ConnectionClosed as closed:
            assert closed.rcvd is not None and closed.rcvd.code == 1000
    (answer,) = (message for message in told if "id" in message)
    assert (answer["id"], answer["result"]["state"]) == (1, "JOB_STATE_CANCELLING")
    states = [message["trainingJob"]["state"] for message in told if "trainingJob" in message]
    assert states == [f"JOB_STATE_{word}" for word in ("QUEUED", "RUNNING", "CANCELLING", "CANCELLED")]
    base = f"http://127.0.0.1:{gateway.http_port}/v1/{name}"
    async with httpx.AsyncClient(headers=headers, timeout=20, trust_env=False) as client:
        stored = (await client.get(f"{base}:streamEvents")).text.splitlines()
        assert [json.loads(line) for line in stored] == [message for message in told if EVENTS & set(message)]
        events = {"accept": "text/event-stream", "last-event-id": json.loads(stored[1])["lastSequence"]}
        body = (await client.get(f"{base}:streamEvents", headers=events)).text
        assert [line.removeprefix("data: ") for line in body.splitlines() if line.startswith('data: {"')] == stored[2:]
        events["last-event-id"] = json.loads(stored[-1])["lastSequence"]
        assert (await client.get(f"{base}:streamEvents", headers=events)).status_code == 204
