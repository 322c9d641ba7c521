"""A gateway before the real dataset and trainer services, with one of each resource in it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg

from services.dataset import app as dataset_app
from services.dataset.settings import Settings as DatasetSettings
from services.gateway.app import build
from services.gateway.openapi.examples import EXAMPLES
from services.gateway.settings import GatewaySettings
from services.mesh import identity
from services.mesh.settings import Environment
from services.supervisor import embedded
from services.trainer import app as trainer_app
from services.trainer.settings import Settings as TrainerSettings
from tests.fix_embedded import held_in_a_thread
from tests.fix_live import LLAMA

# Room for what the algorithms take by default.
_LLAMA = {**LLAMA, "max_position_embeddings": 4096}
_ROWS = [{"prompt": [{"role": "user", "content": f"{n} + 1"}], "answer": str(n + 1)} for n in range(64)]
_PROJECT = "/v1/projects/default"
_WAIT_SECONDS = 120.0


@dataclass(frozen=True)
class RealGateway:
    base_url: str
    token: str
    # The ids of what is there, by the name of the path parameter: those of the document's examples.
    ids: dict[str, str]
    # Others for an operation that would change them, by its id.
    instead: dict[str, dict[str, str]]


@contextlib.contextmanager
def real_gateway(home: Path, postgres: embedded.Postgres, nats: embedded.Nats) -> Iterator[RealGateway]:
    """Workers run while it is filled and not after: the training job stays as it is."""
    home.mkdir(mode=0o700)
    token = identity.ensure_token(home / "token")
    with psycopg.connect(postgres.administrator_url, autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS gateway_tests WITH (FORCE)")
        connection.execute("CREATE DATABASE gateway_tests OWNER rlhf STRATEGY file_copy")
    values = {
        "RLHF_HOME": str(home),
        "RLHF_POSTGRES_URL": postgres.url_of("gateway_tests"),
        "RLHF_NATS_URL": nats.url,
        "RLHF_RAY_ADDRESS": "127.0.0.1:1",
        # A stream that stands still is a stream that a test waits for.
        "RLHF_DATASET_HEARTBEAT_SECONDS": "0.2",
    }
    with held_in_a_thread(lambda: _services(values)) as (port, targets):
        base_url = f"http://127.0.0.1:{port}"
        headers = {"authorization": f"Bearer {token}"}
        with httpx.Client(base_url=base_url, headers=headers, timeout=30, trust_env=False) as http:
            with held_in_a_thread(lambda: _workers(values | targets)):
                ids = _fill(http)
            ids["trainingJob"] = _ended_job(http)
            yield RealGateway(base_url, token, ids, _others(http))


@contextlib.asynccontextmanager
async def _services(values: dict[str, str]) -> AsyncIterator[tuple[int, dict[str, str]]]:
    """Port of HTTP, and where the services listen."""
    async with contextlib.AsyncExitStack() as stack:
        dataset = await _started(stack, dataset_app.build(DatasetSettings.from_env(values)))
        targets = {"RLHF_DATASET_TARGET": f"127.0.0.1:{dataset.port}"}
        trainer = await _started(stack, trainer_app.build(TrainerSettings.from_env(values | targets)))
        targets["RLHF_TRAINER_TARGET"] = f"127.0.0.1:{trainer.port}"
        own = {"RLHF_HOME": values["RLHF_HOME"], **targets}
        gateway = await _started(stack, build(GatewaySettings.read(Environment(own))))
        yield gateway.http_port, targets


@contextlib.asynccontextmanager
async def _workers(values: dict[str, str]) -> AsyncIterator[None]:
    dataset = {key: value for key, value in values.items() if not key.endswith("_TARGET")}
    async with contextlib.AsyncExitStack() as stack:
        await _started(stack, dataset_app.build_worker(DatasetSettings.from_env(dataset, worker=True)))
        await _started(stack, trainer_app.build_worker(TrainerSettings.from_env(values, worker=True)))
        yield


async def _started(stack: contextlib.AsyncExitStack, process: Any) -> Any:
    await process.start()
    stack.push_async_callback(process.stop)
    return process


def _fill(http: httpx.Client) -> dict[str, str]:
    """A model, a dataset, an upload, a version."""
    model = _import(http, "smollm2-135m")
    _done(http.post(f"{_PROJECT}/datasets", params={"datasetId": "questions"}, json=EXAMPLES["DatasetInput"]))
    data = b"".join(json.dumps(row).encode() + b"\n" for row in _ROWS)
    name = _announce(http, len(data), hashlib.sha256(data).hexdigest())
    _done(http.put(f"/v1/{name}:write", content=data))
    _done(http.post(f"/v1/{name}:commit"))
    _until(lambda: _done(http.get(f"/v1/{name}"))["state"] == "STATE_SUCCEEDED")
    _until(lambda: _done(http.get(f"{_PROJECT}/models/{model}"))["state"] == "STATE_READY")
    return {"project": "default", "dataset": "questions", "upload": _id(name), "version": "1", "model": model}


def _others(http: httpx.Client) -> dict[str, dict[str, str]]:
    """What may be changed and deleted."""
    _done(http.post(f"{_PROJECT}/datasets", params={"datasetId": "doomed"}, json=EXAMPLES["DatasetInput"]))
    put, posted, doomed = (_id(_announce(http, 2**20, f"{n}" * 64)) for n in (1, 2, 3))
    return {
        "DeleteDataset": {"dataset": "doomed"},
        "WriteUpload": {"upload": put},
        "WriteUploadByPost": {"upload": posted},
        "DeleteUpload": {"upload": doomed},
        "CancelTrainingJob": {"trainingJob": _create_job(http, "queued")},
        # Where the model of the document's example is not there yet.
        "ImportModel": {"project": "another"},
        "DeleteTrainingJob": {"trainingJob": _ended_job(http, "doomed")},
        # The one that is there is what jobs start from, and a forced deletion would take it away.
        "DeleteModel": {"model": "not-there"},
    }


def _ended_job(http: httpx.Client, name: str = "first") -> str:
    """One whose streams end."""
    job = _create_job(http, name)
    _done(http.post(f"{_PROJECT}/trainingJobs/{job}:cancel"))
    return job


def _create_job(http: httpx.Client, job: str) -> str:
    body = EXAMPLES["TrainingJobInput"]
    return _id(_done(http.post(f"{_PROJECT}/trainingJobs", params={"trainingJobId": job}, json=body))["name"])


def _import(http: httpx.Client, model: str) -> str:
    init = {"config": _LLAMA, "characters": {"alphabet": "0123456789+ "}, "seed": 1}
    body = {"modelId": model, "model": {"source": {"init": init}}}
    return _id(_done(http.post(f"{_PROJECT}/models:import", json=body))["name"])


def _announce(http: httpx.Client, size_bytes: int, sha256: str) -> str:
    upload = {"fileName": "a.jsonl", "sizeBytes": str(size_bytes), "sha256": sha256}
    return _done(http.post(f"{_PROJECT}/datasets/questions/uploads", json=upload))["name"]


def _id(name: str) -> str:
    return name.rpartition("/")[2]


def _done(response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    return response.json()


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _WAIT_SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)
