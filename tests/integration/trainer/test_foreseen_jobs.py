"""A check and Create tell over gRPC what training will make of the rows, in the tokens of the job's own model."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from psycopg.types.json import Jsonb
from rlhf.dataset.v1 import dataset_pb2, dataset_service_pb2
from rlhf.dataset.v1.dataset_service_pb2_grpc import DatasetServiceServicer, add_DatasetServiceServicer_to_server
from rlhf.trainer.v1 import trainer_service_pb2 as pb
from rlhf.trainer.v1 import training_job_pb2
from rlhf.trainer.v1.trainer_service_pb2_grpc import TrainerServiceStub

from services.mesh import names
from services.mesh.artifacts import ArtifactStore
from services.mesh.errors import InvalidArgument
from services.mesh.rpc import client
from services.trainer import app
from services.trainer.settings import Settings
from services.trainer.training import service

PARENT = "projects/default"
ROWS = {
    # A token a digit, and three of the template: 32 of 8 tokens, 32 of 24.
    "chats": [
        {"messages": [{"role": "user", "content": "1" * size}, {"role": "assistant", "content": "2"}]}
        for size in [4] * 32 + [20] * 32
    ],
    "solutions": [
        {"prompt": [{"role": "user", "content": "1"}], "answer": f"It is {number}.\n#### {number}"}
        for number in range(64)
    ],
}


class Datasets(DatasetServiceServicer):
    """Two datasets of one version each, with what was asked of them."""

    def __init__(self) -> None:
        self.downloads = 0

    async def GetDatasetVersion(self, request: Any, context: Any) -> dataset_pb2.DatasetVersion:  # type: ignore[override]
        dataset = request.name.split("/")[3]
        format = "messages" if dataset == "chats" else "prompt"
        size = len(_content(dataset))
        return dataset_pb2.DatasetVersion(
            name=f"{PARENT}/datasets/{dataset}/versions/1",
            format=format,
            row_count=64,
            size_bytes=size,
            sha256="d" * 64,
        )

    async def DownloadDataset(self, request: Any, context: Any) -> AsyncIterator[Any]:  # type: ignore[override]
        self.downloads += 1
        content = _content(request.name.split("/")[3])[request.offset_bytes :]
        for start in range(0, len(content), 1000):
            yield dataset_service_pb2.DownloadDatasetResponse(chunk=content[start : start + 1000])


def _content(dataset: str) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in ROWS[dataset]).encode()


@dataclass
class Foreseeing:
    trainer: TrainerServiceStub
    datasets: Datasets

    async def job(
        self, dataset: str, algorithm: str, validate_only: bool, **params: Any
    ) -> training_job_pb2.TrainingJob:
        job = training_job_pb2.TrainingJob(
            algorithm=algorithm,
            base_model=f"{PARENT}/models/tiny",
            dataset_version=f"{PARENT}/datasets/{dataset}/versions/latest",
        )
        job.params.update(params)
        request = pb.CreateTrainingJobRequest(parent=PARENT, training_job=job, validate_only=validate_only)
        return await client.call(self.trainer.CreateTrainingJob(request))


@pytest.fixture
async def foreseeing(
    home: Path, postgres_url: str, nats_url: str, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Foreseeing]:
    # Of a machine that has much else to do.
    monkeypatch.setattr(service.TrainingJobs.check, "__defaults__", (120.0,))
    datasets, dataset_server = Datasets(), grpc.aio.server()
    add_DatasetServiceServicer_to_server(datasets, dataset_server)
    port = dataset_server.add_insecure_port("127.0.0.1:0")
    await dataset_server.start()
    values = {
        "RLHF_HOME": str(home),
        "RLHF_POSTGRES_URL": postgres_url,
        "RLHF_NATS_URL": nats_url,
        "RLHF_DATASET_TARGET": f"127.0.0.1:{port}",
    }
    server = app.build(Settings.from_env(values))
    await server.start()
    manifest = await ArtifactStore(f"file://{home}/artifacts").put_folder(tiny_model)
    async with await psycopg.AsyncConnection.connect(postgres_url) as connection:
        await connection.execute(
            "INSERT INTO trainer.models (uid, name, parent, display_name, source, labels, state, context_length,"
            " manifest_sha256) VALUES (%s, %s, %s, '', %s, '{}', 'READY', 32, %s)",
            (names.uuid7(), f"{PARENT}/models/tiny", PARENT, Jsonb({"path": "/x"}), manifest.sha256),
        )
    channel = client.connect(f"127.0.0.1:{server.port}", (home / "token").read_text().strip())
    yield Foreseeing(TrainerServiceStub(channel), datasets)
    await channel.close()
    await server.stop()
    await dataset_server.stop(0)


async def test_rows_tokens_and_steps_are_told_before_the_start(foreseeing: Foreseeing) -> None:
    checked = await foreseeing.job("chats", "sft", True, batch_size=8, max_length=16)
    found = checked.data_forecast
    assert (found.row_count, found.kept_row_count, dict(found.left_out)) == (64, 32, {"max_length": 32})
    assert (found.tokens.median, found.tokens.p95, found.tokens.max) == (8, 24, 24)
    assert (found.token_count, found.step_count, found.epoch_count, found.sampled) == (256, 8, 2.0, False)
    assert [(warning.reason, warning.remedy) for warning in checked.warnings] == [
        ("ROWS_LEFT_OUT", "set max_length to 24 to keep 95 % of them")
    ]
    # Another length is read off what was counted; a length that is not given is the model's.
    created = await foreseeing.job("chats", "sft", False, batch_size=8)
    assert created.params["max_length"] == 32
    assert (created.data_forecast.kept_row_count, len(created.warnings)) == (64, 0)
    with pytest.raises(InvalidArgument) as caught:
        await foreseeing.job("chats", "sft", False, batch_size=64, max_length=16)
    [violation] = caught.value.violations
    assert violation.field == "training_job.params.batch_size"
    assert "32 of 64 have at most max_length (16) tokens: set max_length to 24" in violation.description
    assert foreseeing.datasets.downloads == 1


async def test_a_reward_that_does_not_fit_the_answers_is_told_before_the_start(foreseeing: Foreseeing) -> None:
    checked = await foreseeing.job("solutions", "grpo", True, prompts_per_step=8)
    assert (checked.params["max_prompt_length"], checked.params["max_response_length"]) == (16, 16)
    [warning] = checked.warnings
    assert warning.reason == "REWARD_MISFIT"
    assert "exact" in warning.message and "numeric" in warning.remedy
    fits = await foreseeing.job("solutions", "grpo", True, prompts_per_step=8, reward={"name": "numeric"})
    assert list(fits.warnings) == []
