"""The trainer service and its worker over real gRPC, PostgreSQL and NATS; models are made by a real side process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from google.protobuf import json_format, struct_pb2
from rlhf.trainer.v1 import model_pb2, trainer_service_pb2, training_job_pb2
from rlhf.trainer.v1.trainer_service_pb2_grpc import TrainerServiceStub

from services.mesh.errors import AlreadyExists, InvalidArgument, NotFound
from services.mesh.rpc import client
from services.trainer import app
from services.trainer.settings import Settings

PARENT = "projects/default"
LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def environment(home: Path, postgres_url: str, nats_url: str) -> dict[str, str]:
    return {
        "RLHF_HOME": str(home),
        "RLHF_POSTGRES_URL": postgres_url,
        "RLHF_NATS_URL": nats_url,
        "RLHF_DATASET_TARGET": "127.0.0.1:1",
        "RLHF_RAY_ADDRESS": "127.0.0.1:1",
        "RLHF_MODEL_ROOTS": str(home / "roots"),
    }


@pytest.fixture
async def trainer(home: Path, postgres_url: str, nats_url: str) -> AsyncIterator[TrainerServiceStub]:
    values = environment(home, postgres_url, nats_url)
    server, worker = app.build(Settings.from_env(values)), app.build_worker(Settings.from_env(values, worker=True))
    await server.start()
    await worker.start()
    channel = client.connect(f"127.0.0.1:{server.port}", (home / "token").read_text().strip())
    try:
        yield TrainerServiceStub(channel)
    finally:
        await channel.close()
        await worker.stop()
        await server.stop()


def init_request(model_id: str, **config: object) -> trainer_service_pb2.ImportModelRequest:
    init = model_pb2.ModelInit(
        config=json_format.ParseDict({**LLAMA, **config}, struct_pb2.Struct()),
        characters=model_pb2.CharacterTokenizer(alphabet="0123456789"),
        seed=1,
    )
    model = model_pb2.Model(source=model_pb2.ModelSource(init=init))
    return trainer_service_pb2.ImportModelRequest(parent=PARENT, model=model, model_id=model_id)


async def imported(trainer: TrainerServiceStub, name: str) -> model_pb2.Model:
    async with asyncio.timeout(90):
        while True:
            model = await client.call(trainer.GetModel(trainer_service_pb2.GetModelRequest(name=name)))
            if model.state != model_pb2.Model.STATE_IMPORTING:
                return model
            await asyncio.sleep(0.2)


async def test_a_model_from_scratch_becomes_ready_with_its_facts_and_files(trainer: TrainerServiceStub) -> None:
    started = await client.call(trainer.ImportModel(init_request("tiny")))
    assert started.name == f"{PARENT}/models/tiny"
    assert started.state == model_pb2.Model.STATE_IMPORTING
    model = await imported(trainer, started.name)
    assert model.state == model_pb2.Model.STATE_READY, model.error
    assert model.architecture == "LlamaForCausalLM"
    assert model.vocabulary_size == 17
    assert model.parameter_count > 0
    assert {file.path for file in model.files} >= {"config.json", "model.safetensors", "tokenizer.json"}
    listed = await client.call(trainer.ListModels(trainer_service_pb2.ListModelsRequest(parent=PARENT)))
    assert [found.name for found in listed.models] == [model.name]
    with pytest.raises(AlreadyExists):
        await client.call(trainer.ImportModel(init_request("tiny")))


async def test_a_model_that_transformers_refuses_fails_with_its_words(trainer: TrainerServiceStub) -> None:
    started = await client.call(trainer.ImportModel(init_request("bad", model_type="no-such-model")))
    model = await imported(trainer, started.name)
    assert model.state == model_pb2.Model.STATE_FAILED
    assert "no-such-model" in model.error.message
    # The name is free: nothing needs to be deleted first.
    again = await client.call(trainer.ImportModel(init_request("bad")))
    assert again.name == started.name
    model = await imported(trainer, again.name)
    assert (model.state, model.error.message) == (model_pb2.Model.STATE_READY, "")


async def test_every_violation_of_an_import_is_told_at_once(trainer: TrainerServiceStub, home: Path) -> None:
    request = trainer_service_pb2.ImportModelRequest(parent="projects/Bad!", model_id="Not An Id", request_id="x")
    request.model.source.path = str(home / ".." / "elsewhere")
    request.model.labels["UPPER"] = "x"
    with pytest.raises(InvalidArgument) as caught:
        await client.call(trainer.ImportModel(request))
    fields = {violation.field.partition("[")[0] for violation in caught.value.violations}
    assert fields == {"parent", "model_id", "request_id", "model.source.path", "model.labels"}


@pytest.mark.parametrize("escape", ["outside", "roots/../outside", "roots/link"])
async def test_a_path_outside_the_allowed_roots_is_refused(
    trainer: TrainerServiceStub, home: Path, escape: str
) -> None:
    (home / "roots").mkdir()
    (home / "outside").mkdir()
    (home / "roots" / "link").symlink_to(home / "outside")
    request = trainer_service_pb2.ImportModelRequest(parent=PARENT)
    request.model.source.path = str(home / escape)
    with pytest.raises(InvalidArgument) as caught:
        await client.call(trainer.ImportModel(request))
    assert [violation.field for violation in caught.value.violations] == ["model.source.path"]


async def test_every_violation_of_a_job_is_told_at_once(trainer: TrainerServiceStub) -> None:
    job = training_job_pb2.TrainingJob(
        algorithm="sft", base_model=f"{PARENT}/models/none", dataset_version="nonsense", priority=1000
    )
    job.params.update({"learning_rate": -1, "batchsize": 3})
    job.placement.target = "moon"
    job.placement.resources.gpu_count = 99
    request = trainer_service_pb2.CreateTrainingJobRequest(parent=PARENT, training_job=job, training_job_id="-")
    with pytest.raises(InvalidArgument) as caught:
        await client.call(trainer.CreateTrainingJob(request))
    assert {violation.field for violation in caught.value.violations} == {
        "training_job_id",
        "training_job.base_model",
        "training_job.dataset_version",
        "training_job.priority",
        "training_job.params.learning_rate",
        "training_job.params.batchsize",
        "training_job.placement.target",
        "training_job.placement.resources.gpu_count",
    }


async def test_one_answer_holds_what_each_stage_of_the_checks_finds(trainer: TrainerServiceStub) -> None:
    job = training_job_pb2.TrainingJob(
        algorithm="grpo",
        base_model=f"{PARENT}/models/none",
        dataset_version="nonsense",
        labels={"Not A Key": ""},
    )
    job.params.update(
        {
            "learning_rate": 2,
            "micro_batch_size": 7,
            "reward": {"name": "model", "params": {"model": f"{PARENT}/models/none", "scale": 0}},
            "held_out_reward": {"name": "regex", "params": {"pattern": "("}},
            "verl_overrides": {"trainer.nnodes": 2},
            "checkpoints": {"keep_best": 2, "metric": "reward/mean", "mode": "most"},
        }
    )
    request = trainer_service_pb2.CreateTrainingJobRequest(parent=PARENT, training_job=job, request_id="no uuid")
    with pytest.raises(InvalidArgument) as caught:
        await client.call(trainer.CreateTrainingJob(request))
    found = [violation.field for violation in caught.value.violations]
    params = (
        "learning_rate", "micro_batch_size", "reward.params.model", "reward.params.scale",
        "held_out_reward.params.pattern", "verl_overrides.trainer.nnodes",
        "checkpoints.keep_best", "checkpoints.metric", "checkpoints.mode",
    )  # fmt: skip
    others = ("base_model", "dataset_version", "labels")
    assert sorted(name.partition(".Not")[0].partition("[")[0] for name in found) == sorted(
        ["request_id", *(f"training_job.{name}" for name in (*others, *(f"params.{one}" for one in params)))]
    )


async def test_what_is_not_there_is_not_found(trainer: TrainerServiceStub) -> None:
    for call in (
        trainer.GetModel(trainer_service_pb2.GetModelRequest(name=f"{PARENT}/models/none")),
        trainer.GetTrainingJob(trainer_service_pb2.GetTrainingJobRequest(name=f"{PARENT}/trainingJobs/none")),
        trainer.CancelTrainingJob(trainer_service_pb2.CancelTrainingJobRequest(name=f"{PARENT}/trainingJobs/none")),
        trainer.GetCheckpoint(
            trainer_service_pb2.GetCheckpointRequest(name=f"{PARENT}/trainingJobs/none/checkpoints/step-1")
        ),
    ):
        with pytest.raises(NotFound):
            await client.call(call)
    with pytest.raises(NotFound):
        name = f"{PARENT}/trainingJobs/none"
        async with contextlib.aclosing(
            client.stream(trainer.StreamMetrics(trainer_service_pb2.StreamMetricsRequest(name=name)))
        ) as replies:
            async for _ in replies:
                pass


async def test_the_registries_are_listed_with_their_schemas(trainer: TrainerServiceStub) -> None:
    algorithms = await client.call(trainer.ListAlgorithms(trainer_service_pb2.ListAlgorithmsRequest()))
    assert {"sft", "grpo"} <= {algorithm.entry.id for algorithm in algorithms.algorithms}
    for algorithm in algorithms.algorithms:
        assert algorithm.entry.summary and "learning_rate" in algorithm.entry.params_schema["properties"]
    rewards = await client.call(trainer.ListRewards(trainer_service_pb2.ListRewardsRequest()))
    assert {reward.entry.id for reward in rewards.rewards} >= {"exact", "numeric", "regex", "math"}
