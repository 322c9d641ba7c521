"""A home that earlier code made comes up under this one: what its services answered is answered still, and a job that
ran then goes on from its checkpoint.

It was made by commit 9cfe250, before uploads had options and blobs had references: datasets, one of them with nothing
but a file that was refused, a model, a job that had ended, one in the middle of its steps with a checkpoint, and one
that waited for its slot.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.dataset import app as dataset_app
from services.dataset.settings import Settings as DatasetSettings
from services.gateway.app import build
from services.gateway.settings import GatewaySettings
from services.mesh.settings import Environment
from services.trainer import app as trainer_app
from services.trainer.settings import Settings
from tests.fix_earlier_home import PROJECT, answers, restore
from tests.fix_member import until
from tests.integration.trainer.test_runs import scripted_python

SAVED_STEP, STEPS = 50, 1000


@pytest.fixture
def said(home: Path, postgres_url: str) -> dict[str, Any]:
    return restore(postgres_url, home)


@pytest.fixture
def values(home: Path, postgres_url: str, nats_url: str, tmp_path: Path) -> dict[str, str]:
    return {
        "RLHF_HOME": str(home),
        "RLHF_POSTGRES_URL": postgres_url,
        "RLHF_NATS_URL": nats_url,
        "RLHF_RAY_ADDRESS": "127.0.0.1:1",
        "RLHF_TRAINER_WORKER_PYTHON": str(scripted_python(tmp_path)),
        "RLHF_TRAINER_LEASE_SECONDS": "2",
    }


@pytest.fixture
async def http(said: dict[str, Any], values: dict[str, str], home: Path) -> AsyncIterator[httpx.AsyncClient]:
    """Of a gateway before the services, which have come up with that home; `values` then tells where they listen."""
    async with contextlib.AsyncExitStack() as stack:
        dataset = await _started(stack, dataset_app.build(DatasetSettings.from_env(values)))
        targets = {"RLHF_DATASET_TARGET": f"127.0.0.1:{dataset.port}"}
        trainer = await _started(stack, trainer_app.build(Settings.from_env(values | targets)))
        gateway_targets = targets | {"RLHF_TRAINER_TARGET": f"127.0.0.1:{trainer.port}"}
        own = Environment({"RLHF_HOME": str(home), **gateway_targets})
        gateway = await _started(stack, build(GatewaySettings.read(own)))
        values.update(targets)
        headers = {"authorization": f"Bearer {(home / 'token').read_text().strip()}"}
        base_url = f"http://127.0.0.1:{gateway.http_port}"
        opened = httpx.AsyncClient(base_url=base_url, headers=headers, timeout=30, trust_env=False)
        yield await stack.enter_async_context(opened)


async def _started(stack: contextlib.AsyncExitStack, process: Any) -> Any:
    await process.start()
    stack.push_async_callback(process.stop)
    return process


def missing(old: Any, new: Any, path: str = "") -> list[str]:
    """Where `new` does not say what `old` said; it may say more."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [each for key in old for each in missing(old[key], new.get(key), f"{path}.{key}")]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [each for index, one in enumerate(old) for each in missing(one, new[index], f"{path}[{index}]")]
    return [] if old == new else [f"{path}: {old!r:.200} is now {new!r:.200}"]


async def test_all_that_was_answered_is_answered_still(said: dict[str, Any], http: httpx.AsyncClient) -> None:
    now = await answers(http.get)
    assert now.keys() == said.keys()
    assert missing(said, now) == []
    assert len(said) > 60, "there is something to lose"


async def test_a_job_that_ran_goes_on_from_its_checkpoint(
    http: httpx.AsyncClient, values: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCRIPT", json.dumps({}))
    job: dict[str, Any] = {}

    async def has_ended() -> bool:
        job.update((await http.get(f"{PROJECT}/trainingJobs/running")).json())
        return "endTime" in job

    async with contextlib.AsyncExitStack() as stack:
        await _started(stack, trainer_app.build_worker(Settings.from_env(values, worker=True)))
        await until(has_ended, 90)
    assert job["state"] == "JOB_STATE_SUCCEEDED", job
    assert [attempt["resumedFromStep"] for attempt in job["attempts"]] == ["0", str(SAVED_STEP)]
    metrics = await http.get(f"{PROJECT}/trainingJobs/running:streamMetrics?metrics=train/loss")
    points = [point for line in metrics.text.splitlines() for point in json.loads(line).get("points", [])]
    steps = {int(point["step"]) for point in points}
    assert steps == set(range(1, STEPS + 1))
