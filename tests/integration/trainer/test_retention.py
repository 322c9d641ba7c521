"""What is kept of a job's checkpoints: scripted runs, real PostgreSQL, NATS, gRPC and files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb
from rlhf.trainer.v1 import trainer_service_pb2 as pb
from rlhf.trainer.v1 import training_job_pb2
from rlhf.type.v1 import checkpoint_pb2

from services.mesh.artifacts import ArtifactStore, Manifest, gc, references
from services.mesh.artifacts.gc import Collector
from services.mesh.errors import FailedPrecondition, InvalidArgument, NotFound
from services.mesh.jobs.store import Job
from services.mesh.rpc import client
from services.mesh.runs import handler
from services.trainer.checkpoints.ingest import CheckpointIngest
from services.trainer.checkpoints.lifecycle import CheckpointLifecycle
from services.trainer.store import checkpoints as store
from tests.fix_member import until
from tests.fix_references import insert_model
from tests.integration.trainer import test_runs

bench = test_runs.bench
Bench = test_runs.Bench
PARENT = test_runs.PARENT
RULE = {"keep_best": 1, "keep_last": 1, "keep_training_states": 1}
SCRIPT = {"save_at": [1, 2, 3, 4, 5, 6], "scores": {"2": 0.9}}


def states(found: list[checkpoint_pb2.Checkpoint]) -> dict[int, str]:
    return {one.step: checkpoint_pb2.Checkpoint.State.Name(one.state).removeprefix("STATE_") for one in found}


def weights_there(bench: Bench, steps: range = range(1, 7)) -> set[int]:
    """Steps whose weights lie in the artifact store."""
    texts = {step: f"weights {step}".encode() for step in steps}
    there = {path.read_bytes() for path in (bench.home / "artifacts").glob("??/*")}
    return {step for step, text in texts.items() if text in there}


async def only_weights(bench: Bench, *steps: int) -> None:
    """Wait until the store has the weights of these steps and of no other: the collector comes behind the jobs."""
    await until(lambda: weights_there(bench) == set(steps))


async def kept(bench: Bench, monkeypatch: pytest.MonkeyPatch, script: dict[str, Any] = SCRIPT, **params: Any) -> str:
    await bench.start_worker(script, monkeypatch)
    name = await bench.create(validation=test_runs.VERSION, checkpoints=RULE, **params)
    assert (await bench.ended(name)).state == test_runs.SUCCEEDED
    return name


async def test_the_best_and_the_last_stay_and_the_others_are_seen_to_be_gone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = await kept(bench, monkeypatch)
    found = await bench.checkpoints(name)
    assert states(found) == {1: "PRUNED", 2: "READY", 3: "PRUNED", 4: "PRUNED", 5: "PRUNED", 6: "READY"}
    await only_weights(bench, 2, 6)
    gone = found[-1]
    assert gone.state_reason == "the job keeps the 1 of the lowest validation/loss, and the newest"
    assert gone.manifest_sha256 and gone.size_bytes, "what it was is still known"
    with pytest.raises(FailedPrecondition, match="PRUNED"):
        request = pb.DownloadCheckpointRequest(name=gone.name, path="model.safetensors")
        [reply async for reply in client.stream(bench.trainer.DownloadCheckpoint(request))]
    with pytest.raises(InvalidArgument, match="PRUNED"):
        await bench.create(base_model=gone.name)
    told = [test_runs._told(message) for message in await bench.events(name)]
    assert told.index("step-1 READY") < told.index("step-1 PRUNED")
    assert told.index("step-2 READY") < told.index("step-1 PRUNED"), "not before what replaces it is READY"
    assert {one.training_state for one in found} == {checkpoint_pb2.Checkpoint.TRAINING_STATE_PRUNED}


async def test_weights_that_another_checkpoint_names_stay(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second job makes the same bytes and keeps all; then a third, and nobody keeps step 1."""
    await bench.start_worker(SCRIPT, monkeypatch)
    all_kept = await bench.create()
    await bench.ended(all_kept)
    name = await bench.create(validation=test_runs.VERSION, checkpoints=RULE)
    await bench.ended(name)
    assert states(await bench.checkpoints(name))[1] == "PRUNED"
    assert weights_there(bench) == {1, 2, 3, 4, 5, 6}
    for found in await bench.checkpoints(all_kept):
        request = pb.DownloadCheckpointRequest(name=found.name, path="model.safetensors")
        chunks = [reply.chunk async for reply in client.stream(bench.trainer.DownloadCheckpoint(request))]
        assert b"".join(chunks) == f"weights {found.step}".encode()


async def test_what_an_unfinished_job_starts_from_stays(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    # The best until step 5 beats it.
    script = {**SCRIPT, "scores": {"1": 0.8, "5": 0.9}, "step_seconds": 0.5}
    bench.values["RLHF_TRAINER_CONCURRENCY"] = "1"
    await bench.start_worker(script, monkeypatch)
    name = await bench.create(validation=test_runs.VERSION, checkpoints=RULE)
    await bench.until(name, lambda job: job.step_count >= 2)
    started = await bench.create(base_model=f"{name}/checkpoints/step-1")
    await bench.ended(name)
    assert states(await bench.checkpoints(name))[1] == "READY"
    assert (await bench.ended(started)).state == test_runs.SUCCEEDED


async def test_what_judges_an_unfinished_job_stays(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint, against the rule of its job, and a model, against its deletion."""
    script = {**SCRIPT, "scores": {"1": 0.8, "5": 0.9}, "step_seconds": 0.5}
    bench.values["RLHF_TRAINER_CONCURRENCY"] = "1"
    await bench.start_worker(script, monkeypatch)
    name = await bench.create(validation=test_runs.VERSION, checkpoints=RULE)
    await bench.until(name, lambda job: job.step_count >= 3)
    [first] = [one for one in await bench.checkpoints(name) if one.step == 1]
    assert first.manifest_sha256
    model = f"{PARENT}/models/judge"
    judged = await bench.create()
    manifest = await ArtifactStore(f"file://{bench.home}/artifacts").manifest(first.manifest_sha256)
    await insert_model(bench.database_url, model, manifest)
    async with await psycopg.AsyncConnection.connect(bench.database_url) as connection:
        # As CreateTrainingJob writes it down; these scripted weights are no reward models.
        judges = {first.name: first.manifest_sha256, model: first.manifest_sha256}
        await connection.execute(
            "UPDATE trainer.jobs SET spec = jsonb_set(spec, '{reward_models}', %s) WHERE name = %s",
            (Jsonb(judges), judged),
        )
        for judge, sha256 in judges.items():
            await references.add(connection, judged, sha256, judge)
    with pytest.raises(FailedPrecondition, match=r"trainingJobs/\S+ use it"):
        await client.call(bench.trainer.DeleteModel(pb.DeleteModelRequest(name=model)))
    await bench.ended(name)
    assert states(await bench.checkpoints(name))[1] == "READY"
    job = await bench.ended(judged)
    assert job.state == test_runs.SUCCEEDED, job.error
    await client.call(bench.trainer.DeleteModel(pb.DeleteModelRequest(name=model)))


async def test_who_has_lost_the_lease_ends_no_run(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next holder has taken the checkpoint in and deleted the run's copy; who still reads it finds nothing."""
    take, robbed = CheckpointIngest.take, False

    async def robbed_once(self: CheckpointIngest, job: Job, *rest: Any) -> Any:
        nonlocal robbed
        if not robbed:
            robbed = True
            async with await psycopg.AsyncConnection.connect(bench.database_url) as connection:
                query = (
                    "UPDATE trainer.jobs SET lease_token = gen_random_uuid(), lease_expires_at = now() WHERE uid = %s"
                )
                await connection.execute(query, (job.uid,))
            raise NotFound("FOLDER_NOT_FOUND", "there is no such folder any more")
        return await take(self, job, *rest)

    monkeypatch.setattr(CheckpointIngest, "take", robbed_once)
    await bench.start_worker({"save_at": [2], "step_seconds": 0.3}, monkeypatch)
    job = await bench.ended(await bench.create(steps=12))
    assert job.state == test_runs.SUCCEEDED and robbed
    assert len(job.attempts) == 1, "the run went on"


class Crash(Exception):
    """The worker is gone at this point."""


def crashing(function: Callable[..., Any], times: int) -> Callable[..., Any]:
    """`function`, which is not reached the first `times`."""
    left = times

    async def crash(*arguments: Any, **named: Any) -> Any:
        nonlocal left
        if left:
            left -= 1
            raise handler.Unavailable("GONE", "as if the worker had died here")
        return await function(*arguments, **named)

    return crash


@pytest.mark.parametrize(
    ("owner", "method"),
    [
        (references, "drop"),
        (references, "lock"),
        (references, "add_content"),
        (gc, "_forget"),
        (store, "forget_weights_path"),
        (Collector, "collect"),
        (CheckpointLifecycle, "_forget_training_states"),
        (CheckpointLifecycle, "_delete"),
    ],
)
async def test_a_crash_at_any_point_of_it_leaves_nothing_half_done(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, owner: Any, method: str
) -> None:
    monkeypatch.setattr(owner, method, crashing(getattr(owner, method), 2))
    name = await kept(bench, monkeypatch)
    found = await bench.checkpoints(name)
    assert states(found) == {1: "PRUNED", 2: "READY", 3: "PRUNED", 4: "PRUNED", 5: "PRUNED", 6: "READY"}
    await only_weights(bench, 2, 6)
    for one in found:
        if one.state == checkpoint_pb2.Checkpoint.STATE_READY:
            await ArtifactStore(f"file://{bench.home}/artifacts").verify(one.manifest_sha256)
    # The collector comes behind the job.
    async with await psycopg.AsyncConnection.connect(bench.database_url, autocommit=True) as connection:
        await until(lambda: _nothing_released(connection))


async def _nothing_released(connection: psycopg.AsyncConnection[Any]) -> bool:
    cursor = await connection.execute("SELECT count(*) FROM artifacts.released")
    return await cursor.fetchone() == (0,)


async def test_weights_that_vanish_before_they_have_a_name_are_stored_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when another job's checkpoint of the same bytes is let go between the two."""
    put_folder = ArtifactStore.put_folder
    lost = 0

    async def put_and_lose(self: ArtifactStore, folder: Path) -> Manifest:
        nonlocal lost
        manifest = await put_folder(self, folder)
        if lost == 0:
            lost += 1
            sha256 = manifest.file("model.safetensors").sha256
            (bench.home / "artifacts" / sha256[:2] / sha256).unlink()
        return manifest

    monkeypatch.setattr(ArtifactStore, "put_folder", put_and_lose)
    await bench.start_worker({"save_at": [3]}, monkeypatch)
    name = await bench.create()
    assert (await bench.ended(name)).state == test_runs.SUCCEEDED
    [found] = await bench.checkpoints(name)
    assert found.state == checkpoint_pb2.Checkpoint.STATE_READY and lost == 1
    await ArtifactStore(f"file://{bench.home}/artifacts").verify(found.manifest_sha256)


async def test_the_state_that_a_resume_uses_outlives_its_weights(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handler, "_RETRY_SECONDS", 0.05)
    script = {"save_at": [1, 2, 3, 4], "die_at": 5, "scores": {"2": 0.9}}
    name = await kept(bench, monkeypatch, script)
    job = await bench.ended(name)
    assert [attempt.resumed_from_step for attempt in job.attempts] == [0, 4]


async def test_the_forecast_is_on_the_job_and_refuses_what_cannot_fit(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with await psycopg.AsyncConnection.connect(bench.database_url) as connection:
        await connection.execute("UPDATE trainer.models SET parameter_count = 1000")
    name = await bench.create(save_every_steps=2)
    job = await client.call(bench.trainer.GetTrainingJob(pb.GetTrainingJobRequest(name=name)))
    assert (job.disk_forecast.save_count, job.disk_forecast.weights_bytes) == (3, 4000)
    assert 0 < job.disk_forecast.needed_bytes < job.disk_forecast.free_bytes
    asked = training_job_pb2.TrainingJob(
        algorithm="sft", base_model=f"{PARENT}/models/base", dataset_version=test_runs.VERSION
    )
    asked.params.update({"batch_size": 8, "max_length": 32, "steps": 6, "save_every_steps": 2})
    request = pb.CreateTrainingJobRequest(parent=PARENT, training_job=asked, validate_only=True)
    checked = await client.call(bench.trainer.CreateTrainingJob(request))
    assert checked.disk_forecast.needed_bytes == job.disk_forecast.needed_bytes
    # Left open: some ten saves, or at the end only where the disk has no room for more.
    open_ = pb.CreateTrainingJobRequest()
    open_.CopyFrom(request)
    open_.training_job.params.update({"steps": 100})
    del open_.training_job.params["save_every_steps"]
    for parameters, every, saves in ((1000, 20, 5), (checked.disk_forecast.free_bytes // 40, 0, 1)):
        async with await psycopg.AsyncConnection.connect(bench.database_url) as connection:
            await connection.execute("UPDATE trainer.models SET parameter_count = %s", (parameters,))
        settled = await client.call(bench.trainer.CreateTrainingJob(open_))
        assert (settled.params["save_every_steps"], settled.disk_forecast.save_count) == (every, saves)
    async with await psycopg.AsyncConnection.connect(bench.database_url) as connection:
        await connection.execute("UPDATE trainer.models SET parameter_count = 10000000000000")
    with pytest.raises(InvalidArgument) as refused:
        await client.call(bench.trainer.CreateTrainingJob(request))
    [violation] = refused.value.violations
    assert violation.field == "training_job.params.save_every_steps"
    assert "3 saves" in violation.description and "free" in violation.description


async def test_what_is_ready_stays_while_a_later_attempt_verifies_the_same_step(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second attempt begins anew and dies where it has saved step 2 again, but not had it checked."""
    monkeypatch.setattr(handler, "_RETRY_SECONDS", 0.05)
    monkeypatch.setattr(CheckpointLifecycle, "resume_point", _from_the_beginning)
    script = {"save_at": [2], "die_at": 3, "die_attempts": 99, "unverified_from_attempt": 2}
    await bench.start_worker(script, monkeypatch)
    name = await bench.create()
    job = await bench.ended(name)
    assert len(job.attempts) == 4
    [found] = await bench.checkpoints(name)
    assert (found.state, found.provenance.attempt) == (checkpoint_pb2.Checkpoint.STATE_READY, 1)
    request = pb.DownloadCheckpointRequest(name=found.name, path="model.safetensors")
    chunks = [reply.chunk async for reply in client.stream(bench.trainer.DownloadCheckpoint(request))]
    assert b"".join(chunks) == b"weights 2"


async def _from_the_beginning(*_: object) -> None:
    return None


async def test_weights_of_a_deleted_model_go_unless_something_else_names_them(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifacts = ArtifactStore(f"file://{bench.home}/artifacts")
    manifests = {}
    for model, weights in (("alone", "weights of alone"), ("shared", "weights 3")):
        folder = bench.home / model
        folder.mkdir()
        (folder / "model.safetensors").write_text(weights)
        manifests[model] = await artifacts.put_folder(folder)
        await insert_model(bench.database_url, f"{PARENT}/models/{model}", manifests[model])
    await bench.start_worker({"save_at": [3]}, monkeypatch)
    await bench.ended(await bench.create())
    for model in manifests:
        await client.call(bench.trainer.DeleteModel(pb.DeleteModelRequest(name=f"{PARENT}/models/{model}")))
    await bench.ended(await bench.create())
    # The checkpoint of step 3 has the same bytes.
    await only_weights(bench, 3)
    blob = manifests["alone"].file("model.safetensors").sha256
    assert not (bench.home / "artifacts" / blob[:2] / blob).exists()
