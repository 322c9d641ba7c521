"""The dataset and trainer services with their workers and a gateway, all real and all in this process."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.dataset import app as dataset_app
from services.dataset.settings import Settings as DatasetSettings
from services.gateway.app import Gateway, build
from services.gateway.settings import GatewaySettings
from services.mesh.rpc.server import Process
from services.mesh.settings import Environment
from services.trainer import app as trainer_app
from services.trainer.settings import Settings as TrainerSettings
from tests.fix_member import until
from tests.integration.trainer.test_runs import ready_model, scripted_python

PARENT = "projects/default"
ROWS = b'{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a"}]}\n' * 64


@dataclass
class Mesh:
    http: httpx.AsyncClient
    gateway: Gateway
    token: str
    home: Path

    async def call(self, method: str, path: str, body: Any = None, **headers: str) -> dict[str, Any]:
        """The answer to a request that must succeed."""
        answer = await self.http.request(method, path, json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def until(self, path: str, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        found: dict[str, Any] = {}

        async def look() -> bool:
            found.update(await self.call("GET", path))
            return holds(found)

        await until(look, 60)
        return found

    async def new_upload(self, dataset: str) -> str:
        """An upload into a new dataset, without a byte; its name."""
        await self.call("POST", f"/v1/{PARENT}/datasets?dataset_id={dataset}", {"format": "messages"})
        new = {"fileName": "rows.jsonl", "sizeBytes": len(ROWS), "sha256": hashlib.sha256(ROWS).hexdigest()}
        upload = await self.call("POST", f"/v1/{PARENT}/datasets/{dataset}/uploads", new)
        return upload["name"]

    async def upload(self, dataset: str) -> str:
        """A version of a new dataset; its name."""
        name = await self.new_upload(dataset)
        written = await self.http.put(f"/v1/{name}:write", content=ROWS)
        assert written.status_code == 200, written.text
        await self.call("POST", f"/v1/{name}:commit", {})
        done = await self.until(f"/v1/{name}", lambda found: found["state"] in ("STATE_SUCCEEDED", "STATE_FAILED"))
        assert done["state"] == "STATE_SUCCEEDED", done
        return done["datasetVersion"]


def job_of(version: str) -> dict[str, Any]:
    return {
        "algorithm": "sft",
        "baseModel": f"{PARENT}/models/base",
        "datasetVersion": version,
        "params": {"batch_size": 8, "max_length": 32, "steps": 3},
    }


@pytest.fixture
async def mesh(
    home: Path, postgres_url: str, nats_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Mesh]:
    monkeypatch.setenv("SCRIPT", json.dumps({"save_at": [3]}))
    monkeypatch.setattr("services.mesh.telemetry.gauges.SECONDS", 0.1)
    values = {
        "RLHF_HOME": str(home),
        "RLHF_POSTGRES_URL": postgres_url,
        "RLHF_NATS_URL": nats_url,
        "RLHF_RAY_ADDRESS": "127.0.0.1:1",
        "RLHF_TRAINER_WORKER_PYTHON": str(scripted_python(tmp_path)),
    }
    running: list[Process] = []

    async def start(process: Process) -> Any:
        await process.start()
        running.append(process)
        return process

    try:
        dataset = await start(dataset_app.build(DatasetSettings.from_env(values)))
        await start(dataset_app.build_worker(DatasetSettings.from_env(values, worker=True)))
        values["RLHF_DATASET_TARGET"] = f"127.0.0.1:{dataset.port}"
        trainer = await start(trainer_app.build(TrainerSettings.from_env(values)))
        await ready_model(home, postgres_url)
        await start(trainer_app.build_worker(TrainerSettings.from_env(values, worker=True)))
        values["RLHF_TRAINER_TARGET"] = f"127.0.0.1:{trainer.port}"
        gateway = await start(build(GatewaySettings.read(Environment(values))))
        token = (home / "token").read_text().strip()
        base, headers = f"http://127.0.0.1:{gateway.http_port}", {"authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(base_url=base, headers=headers, timeout=30, trust_env=False) as client:
            yield Mesh(client, gateway, token, home)
    finally:
        for process in reversed(running):
            await process.stop()
