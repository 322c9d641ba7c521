"""A job made again from what it was made from, and refused where that is gone: real PostgreSQL, NATS and gRPC."""

from __future__ import annotations

import psycopg
import pytest
from rlhf.trainer.v1 import trainer_service_pb2 as pb
from rlhf.trainer.v1 import training_job_pb2

from services.mesh import names
from services.mesh.errors import InvalidArgument
from services.mesh.rpc import client
from tests.integration.trainer import test_runs
from tests.integration.trainer.test_retention import RULE, SCRIPT, states

bench = test_runs.bench
Bench = test_runs.Bench
PARENT = test_runs.PARENT


async def replay(
    bench: Bench, name: str, reward_model: str = "", **changed_inputs: str
) -> training_job_pb2.TrainingJob:
    """As `client.training_jobs.replay` asks for it."""
    made = await client.call(bench.trainer.GetTrainingJob(pb.GetTrainingJobRequest(name=name)))
    again = training_job_pb2.TrainingJob(
        algorithm=made.algorithm,
        base_model=made.base_model,
        dataset_version=made.dataset_version,
        validation_dataset_version=made.validation_dataset_version,
        params=made.params,
        placement=made.placement,
        inputs=made.inputs,
    )
    for name in again.inputs.reward_models if reward_model else ():
        again.inputs.reward_models[name] = reward_model
    for field, value in changed_inputs.items():
        setattr(again.inputs, field, value)
    request = pb.CreateTrainingJobRequest(parent=PARENT, training_job=again, request_id=str(names.uuid7()))
    return await client.call(bench.trainer.CreateTrainingJob(request))


async def test_the_same_job_is_made_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await bench.start_worker({"save_at": [6]}, monkeypatch)
    name = await bench.create(seed=7, checkpoints={"keep_best": 0})
    first = await bench.ended(name)
    again = await bench.ended((await replay(bench, name)).name)
    assert again.state == test_runs.SUCCEEDED
    for field in ("algorithm", "base_model", "dataset_version", "params", "inputs", "placement"):
        assert getattr(again, field) == getattr(first, field), field
    [made], [before] = await bench.checkpoints(again.name), await bench.checkpoints(name)
    assert made.provenance.params_sha256 == before.provenance.params_sha256
    assert made.manifest_sha256 == before.manifest_sha256
    assert made.provenance.job != before.provenance.job


async def test_what_is_not_what_it_was_is_refused_by_name(bench: Bench) -> None:
    name = await bench.create(validation=test_runs.VERSION)
    changed = {"base_manifest_sha256": "a" * 64, "dataset_sha256": "b" * 64, "validation_dataset_sha256": "c" * 64}
    with pytest.raises(InvalidArgument) as refused:
        await replay(bench, name, **changed)
    assert [v.field for v in refused.value.violations] == [f"training_job.inputs.{field}" for field in changed]
    assert "is gone" in refused.value.violations[0].description


async def test_what_judges_a_job_is_kept_with_its_hash_and_refused_once_it_has_another(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = f"{PARENT}/models/judge"
    async with await psycopg.AsyncConnection.connect(bench.database_url) as connection:
        # The same bytes: nothing loads them here.
        await connection.execute(
            "INSERT INTO trainer.models (uid, name, parent, display_name, source, labels, state, context_length,"
            " manifest_sha256, architecture) SELECT %s, %s, parent, '', source, labels, state, context_length,"
            " manifest_sha256, 'LlamaForSequenceClassification' FROM trainer.models",
            (names.uuid7(), judge),
        )
    await bench.start_worker({"save_at": [6]}, monkeypatch)
    name = await bench.create(reward={"name": "model", "params": {"model": judge}})
    made = await bench.ended(name)
    assert dict(made.inputs.reward_models) == {judge: made.inputs.base_manifest_sha256}
    [checkpoint] = await bench.checkpoints(name)
    assert checkpoint.provenance.reward_models == made.inputs.reward_models
    assert (await replay(bench, name)).inputs == made.inputs
    with pytest.raises(InvalidArgument) as refused:
        await replay(bench, name, reward_model="a" * 64)
    assert [v.field for v in refused.value.violations] == [f"training_job.inputs.reward_models.{judge}"]


async def test_a_base_model_that_was_deleted_or_let_go_is_named(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await bench.start_worker(SCRIPT, monkeypatch)
    name = await bench.create(validation=test_runs.VERSION, checkpoints=RULE)
    await bench.ended(name)
    assert states(await bench.checkpoints(name))[2] == "READY"
    child = await bench.create(base_model=f"{name}/checkpoints/step-2")
    await bench.ended(child)
    async with await psycopg.AsyncConnection.connect(bench.database_url) as connection:
        await connection.execute("UPDATE trainer.checkpoints SET state = 'PRUNED' WHERE step = 2")
    with pytest.raises(InvalidArgument, match=r"training_job\.base_model: .*step-2 is PRUNED"):
        await replay(bench, child)
    await client.call(bench.trainer.DeleteModel(pb.DeleteModelRequest(name=f"{PARENT}/models/base")))
    with pytest.raises(InvalidArgument, match=r"training_job\.base_model: there is no .*models/base"):
        await replay(bench, name)
