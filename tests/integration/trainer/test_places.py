"""Places to run: a file that registers one is enough for jobs to be placed there."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from rlhf.trainer.v1 import trainer_service_pb2 as pb
from rlhf.trainer.v1 import training_job_pb2

from services.mesh.errors import InvalidArgument
from services.mesh.rpc import client
from services.mesh.runs.runners import runners
from tests.integration.trainer.test_runs import PARENT, Bench, bench

__all__ = ["bench"]


def job_at(target: str) -> pb.CreateTrainingJobRequest:
    job = training_job_pb2.TrainingJob(
        algorithm="sft",
        base_model=f"{PARENT}/models/base",
        dataset_version=f"{PARENT}/datasets/d/versions/latest",
    )
    job.params.update({"batch_size": 8, "max_length": 32, "steps": 2000})
    job.placement.target = target
    return pb.CreateTrainingJobRequest(parent=PARENT, training_job=job)


async def test_a_job_runs_where_it_was_placed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runners, "_entries", dict(runners.items()))
    with pytest.raises(InvalidArgument, match=r"one of local$"):
        await client.call(bench.trainer.CreateTrainingJob(job_at("nice")))
    import tests.fakes.runner_elsewhere  # noqa: F401

    await bench.start_worker({"step_seconds": 0.1}, monkeypatch)
    seen: set[Path] = set()
    for target, niceness in (("nice", 19), ("", os.getpriority(os.PRIO_PROCESS, 0))):
        made = await client.call(bench.trainer.CreateTrainingJob(job_at(target)))
        assert made.placement.target == (target or "local")
        await bench.until(made.name, lambda job: job.step_count > 0)
        (runner,) = set(bench.home.glob("trainer/jobs/*/attempts/1/runner.json")) - seen
        assert os.getpriority(os.PRIO_PROCESS, json.loads(runner.read_text())["pid"]) == niceness
        await client.call(bench.trainer.CancelTrainingJob(pb.CancelTrainingJobRequest(name=made.name)))
        await bench.ended(made.name)
        seen.add(runner)
