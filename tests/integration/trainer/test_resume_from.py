"""A job that goes on from where a cancelled or failed one ended: scripted runs, everything else real."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pytest
from rlhf.trainer.v1 import trainer_service_pb2 as pb
from rlhf.trainer.v1 import training_job_pb2
from rlhf.type.v1 import checkpoint_pb2, job_state_pb2

from services.mesh.errors import InvalidArgument
from services.mesh.rpc import client
from services.trainer.store import ended_states
from services.trainer.training import launch_plan as plans
from tests.integration.trainer import test_runs
from tests.integration.trainer.test_corruption import flip_a_byte

bench = test_runs.bench
Bench = test_runs.Bench
SCRIPT = {"save_at": [2, 3, 6], "fail_at": 4, "fail_attempts": 1}


async def create(bench: Bench, resume_from: str, **params: Any) -> str:
    job = training_job_pb2.TrainingJob(
        algorithm=params.pop("algorithm", "sft"),
        base_model=f"{test_runs.PARENT}/models/base",
        dataset_version=test_runs.VERSION,
        resume_from=resume_from,
    )
    job.params.update({"batch_size": 8, "max_length": 32, "steps": 6, **params})
    request = pb.CreateTrainingJobRequest(parent=test_runs.PARENT, training_job=job)
    return (await client.call(bench.trainer.CreateTrainingJob(request))).name


async def failed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> str:
    await bench.start_worker(SCRIPT, monkeypatch)
    name = await create(bench, "")
    assert (await bench.ended(name)).state == job_state_pb2.JOB_STATE_FAILED
    return name


async def whole(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that come to their end from now on."""
    await bench.workers.pop().stop()
    await bench.start_worker({"save_at": [6]}, monkeypatch)


def states_there(bench: Bench) -> list[str]:
    found = (bench.home / "trainer" / "jobs").glob("*/attempts/*/checkpoints/*/*/state.pt")
    return sorted(path.read_text() for path in found)


async def test_a_failed_job_is_gone_on_from_with_its_optimizer(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    name = await failed(bench, monkeypatch)
    kept = {one.step: one.training_state for one in await bench.checkpoints(name)}
    assert kept == {
        3: checkpoint_pb2.Checkpoint.TRAINING_STATE_KEPT,
        2: checkpoint_pb2.Checkpoint.TRAINING_STATE_PRUNED,
    }
    assert states_there(bench) == ["state 3"], "the newest, and nothing else of its run"
    await whole(bench, monkeypatch)
    job = await bench.ended(await create(bench, f"{name}/checkpoints/step-3", steps=8, save_every_steps=1))
    assert job.state == test_runs.SUCCEEDED and job.resume_from == f"{name}/checkpoints/step-3"
    assert [attempt.resumed_from_step for attempt in job.attempts] == [3]
    assert [point.step for point in await bench.metrics(job.name, "train/loss")] == [4, 5, 6, 7, 8]
    [plan] = [
        plan
        for path in (bench.home / "trainer" / "jobs").glob("*/attempts/*/plan.json")
        if (plan := plans.read(path.parent)).job == job.name
    ]
    assert plan.resume_from is not None and (Path(plan.resume_from.path) / "state.pt").read_text() == "state 3"
    assert states_there(bench) == ["state 3"], "it may be gone on from once more"


async def test_everything_in_which_it_differs_is_told_at_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    name = await failed(bench, monkeypatch)
    with pytest.raises(InvalidArgument) as caught:
        await create(bench, f"{name}/checkpoints/step-3", batch_size=4, learning_rate=1e-3, steps=3, epochs=2)
    assert {violation.field for violation in caught.value.violations} == {
        "training_job.params.batch_size", "training_job.params.learning_rate", "training_job.params.steps",
    }  # fmt: skip
    with pytest.raises(InvalidArgument, match="must be sft as it was in"):
        await create(bench, f"{name}/checkpoints/step-3", algorithm="dpo")
    with pytest.raises(InvalidArgument, match="has no training state to go on from; start from it by base_model"):
        await create(bench, f"{name}/checkpoints/step-2")
    with pytest.raises(InvalidArgument, match="resume_from"):
        await create(bench, f"{name}/checkpoints/step-99")


async def test_what_changed_since_is_told_and_nothing_starts(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    name = await failed(bench, monkeypatch)
    flip_a_byte(next(bench.home.glob("trainer/jobs/*/attempts/1/checkpoints/step-3/training_state/state.pt")))
    await whole(bench, monkeypatch)
    job = await bench.ended(await create(bench, f"{name}/checkpoints/step-3"))
    assert job.state == job_state_pb2.JOB_STATE_FAILED and "no longer what was saved" in job.error.message
    assert "by base_model" in job.error.message


async def test_so_many_ended_jobs_keep_theirs(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those that ended last, and what a job that has not ended goes on from."""
    bench.values["RLHF_TRAINER_KEPT_TRAINING_STATES"] = "1"
    first, second = await failed(bench, monkeypatch), ""
    second = await create(bench, "")
    await bench.ended(second)
    await bench.workers.pop().stop()
    waiting = await create(bench, f"{first}/checkpoints/step-3")
    async with await psycopg.AsyncConnection.connect(
        bench.database_url, options="-c search_path=trainer"
    ) as connection:
        kept = await ended_states.kept(connection, 1)
        assert set(kept) == {f"{first}/checkpoints/step-3", f"{second}/checkpoints/step-3"}
    await client.call(bench.trainer.CancelTrainingJob(pb.CancelTrainingJobRequest(name=waiting)))
    # A worker sweeps when it starts.
    await bench.start_worker(SCRIPT, monkeypatch)
    await bench.until(second, lambda job: len(states_there(bench)) == 1)
    left = {one.step: one.training_state for one in await bench.checkpoints(first)}
    assert left[3] == checkpoint_pb2.Checkpoint.TRAINING_STATE_PRUNED
    [still] = [one for one in await bench.checkpoints(second) if one.step == 3]
    assert still.training_state == checkpoint_pb2.Checkpoint.TRAINING_STATE_KEPT
