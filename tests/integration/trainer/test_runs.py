"""The worker follows runs through whatever happens to them: scripted runs, real PostgreSQL, NATS and gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from rlhf.dataset.v1 import dataset_pb2, dataset_service_pb2
from rlhf.dataset.v1.dataset_service_pb2_grpc import DatasetServiceServicer, add_DatasetServiceServicer_to_server
from rlhf.trainer.v1 import trainer_service_pb2 as pb
from rlhf.trainer.v1 import training_job_pb2
from rlhf.trainer.v1.trainer_service_pb2_grpc import TrainerServiceStub
from rlhf.type.v1 import checkpoint_pb2, job_state_pb2, metric_point_pb2

from services.mesh import names
from services.mesh.artifacts import ArtifactStore
from services.mesh.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from services.mesh.rpc import client
from services.mesh.rpc.server import Process
from services.trainer import app
from services.trainer.settings import Settings
from tests.fix_references import insert_model

PARENT = "projects/default"
ROWS = b'{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a"}]}\n' * 64
VERSION = f"{PARENT}/datasets/d/versions/1"
SUCCEEDED = job_state_pb2.JOB_STATE_SUCCEEDED
Predicate = Callable[[training_job_pb2.TrainingJob], bool]


class Rows(DatasetServiceServicer):
    """One version, whose download breaks off once in the middle: that of the run, after the look at the rows."""

    def __init__(self) -> None:
        self.downloads = 0

    async def GetDatasetVersion(self, request: Any, context: Any) -> dataset_pb2.DatasetVersion:  # type: ignore[override]
        return dataset_pb2.DatasetVersion(
            name=VERSION, format="messages", row_count=64, size_bytes=len(ROWS), sha256="d" * 64
        )

    async def DownloadDataset(self, request: Any, context: Any) -> AsyncIterator[Any]:  # type: ignore[override]
        self.downloads += 1
        end = len(ROWS) // 2 if self.downloads == 2 else len(ROWS)
        yield dataset_service_pb2.DownloadDatasetResponse(chunk=ROWS[request.offset_bytes : end])
        if self.downloads == 2:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "broken off")


@dataclass
class Bench:
    """A trainer with workers that can be lost, and jobs whose runs follow a script."""

    values: dict[str, str]
    home: Path
    trainer: TrainerServiceStub
    trainer_port: int
    database_url: str
    workers: list[Process] = field(default_factory=list)

    async def start_worker(self, script: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Process:
        monkeypatch.setenv("SCRIPT", json.dumps(script))
        worker = app.build_worker(Settings.from_env(self.values, worker=True))
        await worker.start()
        self.workers.append(worker)
        return worker

    async def create(
        self, base_model: str = f"{PARENT}/models/base", validation: str = "", priority: int = 0, **params: Any
    ) -> str:
        job = training_job_pb2.TrainingJob(
            algorithm="sft",
            base_model=base_model,
            dataset_version=f"{PARENT}/datasets/d/versions/latest",
            validation_dataset_version=validation,
            priority=priority,
        )
        job.params.update({"batch_size": 8, "max_length": 32, "steps": 6, **params})
        request = pb.CreateTrainingJobRequest(parent=PARENT, training_job=job, request_id=str(names.uuid7()))
        created = await client.call(self.trainer.CreateTrainingJob(request))
        assert created.state == job_state_pb2.JOB_STATE_QUEUED
        assert created.dataset_version == VERSION
        again = await client.call(self.trainer.CreateTrainingJob(request))
        assert again.name == created.name
        return created.name

    async def until(self, name: str, holds: Predicate) -> training_job_pb2.TrainingJob:
        async with asyncio.timeout(60):
            while True:
                job = await client.call(self.trainer.GetTrainingJob(pb.GetTrainingJobRequest(name=name)))
                if holds(job):
                    return job
                await asyncio.sleep(0.05)

    async def ended(self, name: str) -> training_job_pb2.TrainingJob:
        return await self.until(name, lambda job: job.HasField("end_time"))

    async def metrics(self, name: str, *wanted: str) -> list[metric_point_pb2.MetricPoint]:
        request = pb.StreamMetricsRequest(name=name, metrics=wanted)
        return [p async for reply in client.stream(self.trainer.StreamMetrics(request)) for p in reply.points]

    async def events(self, name: str, **how: Any) -> list[pb.StreamJobEventsResponse]:
        request = pb.StreamJobEventsRequest(name=name, **how)
        replies = client.stream(self.trainer.StreamJobEvents(request))
        return [reply async for reply in replies if reply.WhichOneof("event")]

    async def checkpoints(self, name: str) -> list[checkpoint_pb2.Checkpoint]:
        found = await client.call(self.trainer.ListCheckpoints(pb.ListCheckpointsRequest(parent=name)))
        return list(found.checkpoints)


@pytest.fixture
async def bench(
    home: Path, postgres_url: str, nats_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Bench]:
    # Where runs that a test leaves alive keep their temporary folders.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dataset_server = grpc.aio.server()
    add_DatasetServiceServicer_to_server(Rows(), dataset_server)
    dataset_port = dataset_server.add_insecure_port("127.0.0.1:0")
    await dataset_server.start()
    values = {
        "RLHF_HOME": str(home),
        "RLHF_POSTGRES_URL": postgres_url,
        "RLHF_NATS_URL": nats_url,
        "RLHF_DATASET_TARGET": f"127.0.0.1:{dataset_port}",
        "RLHF_RAY_ADDRESS": "127.0.0.1:1",
        "RLHF_TRAINER_WORKER_PYTHON": str(scripted_python(tmp_path)),
        "RLHF_TRAINER_LEASE_SECONDS": "2",
    }
    server = app.build(Settings.from_env(values))
    await server.start()
    await ready_model(home, postgres_url)
    channel = client.connect(f"127.0.0.1:{server.port}", (home / "token").read_text().strip())
    found = Bench(values, home, TrainerServiceStub(channel), server.port, postgres_url)
    yield found
    for worker in found.workers:
        await worker.stop()
    await channel.close()
    await server.stop()
    await dataset_server.stop(0)


def scripted_python(folder: Path) -> Path:
    """What the worker starts in place of `python -m services.trainer.verl.runner FOLDER`.

    What would tell the lengths of rows ends at once: it takes longer than a scripted run, over a model that nobody can
    read. Anything else is the real.
    """
    path = folder / "python"
    script = Path(__file__).with_name("scripted_run.py")
    runs = f'case "$2" in *.runner) exec {sys.executable} {script} "$@";; esac'
    lengths = 'case "$2 $3" in "services.trainer.verifier tokens") exit 1;; esac'
    path.write_text(f'#!/bin/sh\n{runs}\n{lengths}\nexec {sys.executable} "$@"\n')
    path.chmod(0o755)
    return path


def _told(message: pb.StreamJobEventsResponse) -> str:
    """A message of the stream in a few words."""
    kind = message.WhichOneof("event")
    if kind == "job_error":
        return f"error of attempt {message.job_error.attempt}"
    if kind == "checkpoint":
        state = checkpoint_pb2.Checkpoint.State.Name(message.checkpoint.state).removeprefix("STATE_")
        return f"{message.checkpoint.name.rpartition('/')[2]} {state}"
    return job_state_pb2.JobState.Name(message.training_job.state).removeprefix("JOB_STATE_")


async def ready_model(home: Path, postgres_url: str) -> None:
    """A model that needs no torch: its bytes are never read here."""
    folder = home / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    manifest = await ArtifactStore(f"file://{home}/artifacts").put_folder(folder)
    await insert_model(postgres_url, f"{PARENT}/models/base", manifest, context_length=64)


async def test_a_run_is_stored_once_with_its_metrics_logs_samples_and_checkpoints(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.start_worker({"save_at": [3, 6]}, monkeypatch)
    name = await bench.create()
    job = await bench.ended(name)
    assert job.state == SUCCEEDED
    assert (job.step_count, job.total_step_count) == (6, 6)
    assert [attempt.number for attempt in job.attempts] == [1]
    points = await bench.metrics(name)
    assert [point.ordinal for point in points] == list(range(1, 13))
    assert [point.step for point in points if point.metric == "train/loss"] == [1, 2, 3, 4, 5, 6]
    assert all(math.isnan(point.value) for point in points if point.metric == "train/grad_norm")
    assert {point.metric for point in await bench.metrics(name, "train/l*")} == {"train/loss"}
    logs = pb.StreamLogsRequest(name=name)
    lines = [line.text async for reply in client.stream(bench.trainer.StreamLogs(logs)) for line in reply.lines]
    assert lines == [f"step {step} of attempt 1" for step in range(1, 7)]
    samples = await client.call(bench.trainer.ListSamples(pb.ListSamplesRequest(parent=name, step=3)))
    assert [(sample.step, sample.completion, sample.score) for sample in samples.samples] == [(3, "a?", 0.5)]


async def test_checkpoints_are_listed_downloaded_and_announced(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await bench.start_worker({"save_at": [3, 6], "spoil_at": [3]}, monkeypatch)
    name = await bench.create()
    await bench.ended(name)
    last, spoilt = await bench.checkpoints(name)
    assert (last.name, last.state) == (f"{name}/checkpoints/step-6", checkpoint_pb2.Checkpoint.STATE_READY)
    assert last.metrics["validation/score/mean"] == 0.6
    assert spoilt.state == checkpoint_pb2.Checkpoint.STATE_CORRUPT, "its bytes changed after they were verified"
    request = pb.DownloadCheckpointRequest(name=last.name, path="model.safetensors", offset_bytes=2)
    chunks = [reply.chunk async for reply in client.stream(bench.trainer.DownloadCheckpoint(request))]
    assert b"".join(chunks) == b"ights 6"
    request = pb.DownloadCheckpointRequest(name=spoilt.name, path="model.safetensors")
    with pytest.raises(FailedPrecondition, match="--allow-corrupt"):
        [reply async for reply in client.stream(bench.trainer.DownloadCheckpoint(request))]
    request.allow_corrupt = True
    kept = [reply.chunk async for reply in client.stream(bench.trainer.DownloadCheckpoint(request))]
    assert b"".join(kept) == b"something else"
    async with await psycopg.AsyncConnection.connect(bench.database_url) as connection:
        cursor = await connection.execute(
            "SELECT resource, payload->'checkpoint'->>'state' FROM trainer.events"
            " WHERE type = 'rlhf.event.v1.CheckpointChanged' ORDER BY ordinal"
        )
        announced = [
            (spoilt.name, "STATE_VERIFYING"), (spoilt.name, "STATE_CORRUPT"),
            (last.name, "STATE_VERIFYING"), (last.name, "STATE_READY"),
        ]  # fmt: skip
        assert await cursor.fetchall() == announced
    left = list(bench.home.glob("trainer/jobs/*/attempts/*/checkpoints"))
    assert left == [], "weights are in the artifact store; copies beside the run are gone"


async def test_no_job_starts_from_a_reward_model(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await bench.start_worker({"save_at": [6], "kind": "reward"}, monkeypatch)
    name = await bench.create()
    assert (await bench.ended(name)).state == SUCCEEDED
    [checkpoint] = await bench.checkpoints(name)
    assert (checkpoint.kind, checkpoint.state) == (checkpoint.KIND_REWARD, checkpoint.STATE_READY)
    with pytest.raises(InvalidArgument, match="is a reward model"):
        await bench.create(base_model=checkpoint.name)


async def test_a_run_that_dies_is_started_again_from_its_last_checkpoint(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.mesh.runs.handler._RETRY_SECONDS", 0.1)
    await bench.start_worker({"save_at": [2], "die_at": 4}, monkeypatch)
    name = await bench.create()
    job = await bench.ended(name)
    assert job.state == SUCCEEDED
    assert [attempt.resumed_from_step for attempt in job.attempts] == [0, 2]
    assert "died" in job.attempts[0].end_reason
    loss = [(p.attempt, p.step) for p in await bench.metrics(name, "train/loss")]
    assert loss == [(1, 1), (1, 2), (1, 3), (1, 4), (2, 3), (2, 4), (2, 5), (2, 6)]


async def test_a_run_that_was_told_to_stop_by_a_signal_goes_on(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await bench.start_worker({"save_at": [3], "told_to_stop_at": 3}, monkeypatch)
    job = await bench.ended(await bench.create())
    assert job.state == SUCCEEDED
    assert [attempt.resumed_from_step for attempt in job.attempts] == [0, 3]


async def test_a_run_that_always_dies_fails_with_the_number_of_tries(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.mesh.runs.handler._RETRY_SECONDS", 0.05)
    await bench.start_worker({"die_at": 1, "die_attempts": 99}, monkeypatch)
    job = await bench.ended(await bench.create())
    assert job.state == job_state_pb2.JOB_STATE_FAILED
    assert len(job.attempts) == 4
    assert "tried 4 times\nThe last it printed:\n  step 1 of attempt 4\n" in job.error.message


async def test_a_run_that_says_why_it_failed_is_not_tried_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await bench.start_worker({"fail_at": 3}, monkeypatch)
    job = await bench.ended(await bench.create())
    assert job.state == job_state_pb2.JOB_STATE_FAILED
    assert len(job.attempts) == 1
    assert "no room" in job.error.message and "smaller batch" in job.error.message


async def test_cancel_stops_at_the_next_step_boundary(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await bench.start_worker({"step_seconds": 0.2}, monkeypatch)
    name = await bench.create(steps=200)
    await bench.until(name, lambda job: job.step_count >= 2)
    cancelled = await client.call(bench.trainer.CancelTrainingJob(pb.CancelTrainingJobRequest(name=name)))
    assert cancelled.state == job_state_pb2.JOB_STATE_CANCELLING
    job = await bench.ended(name)
    assert job.state == job_state_pb2.JOB_STATE_CANCELLED
    assert job.step_count < 200
    with pytest.raises(FailedPrecondition):
        await client.call(bench.trainer.CancelTrainingJob(pb.CancelTrainingJobRequest(name=name)))


async def test_a_run_that_does_not_stop_is_killed_after_the_grace_period(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.values["RLHF_TRAINER_CANCEL_GRACE_SECONDS"] = "0.5"
    await bench.start_worker({"step_seconds": 0.2, "deaf": True}, monkeypatch)
    name = await bench.create(steps=2000)
    await bench.until(name, lambda job: job.step_count >= 1)
    pid = json.loads(next(bench.home.glob("trainer/jobs/*/attempts/1/runner.json")).read_text())["pid"]
    await client.call(bench.trainer.CancelTrainingJob(pb.CancelTrainingJobRequest(name=name)))
    job = await bench.ended(name)
    assert job.state == job_state_pb2.JOB_STATE_CANCELLED
    assert not alive(pid)


async def test_a_queued_job_is_cancelled_at_once(bench: Bench) -> None:
    name = await bench.create()
    cancelled = await client.call(bench.trainer.CancelTrainingJob(pb.CancelTrainingJobRequest(name=name)))
    assert cancelled.state == job_state_pb2.JOB_STATE_CANCELLED


async def test_another_worker_goes_on_with_a_run_that_lives(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    script = {"step_seconds": 0.1, "save_at": [30]}
    first = await bench.start_worker(script, monkeypatch)
    name = await bench.create(steps=40)
    await bench.until(name, lambda job: job.step_count >= 3)
    await first.stop()
    bench.workers.remove(first)
    await asyncio.sleep(0.5)
    await bench.start_worker(script, monkeypatch)
    job = await bench.ended(name)
    assert job.state == SUCCEEDED
    assert len(job.attempts) == 1, "the run went on without a worker and was found again"
    steps = [point.step for point in await bench.metrics(name, "train/loss")]
    assert steps == list(range(1, 41))


async def test_a_run_that_ended_unwatched_is_read_to_its_end(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    first = await bench.start_worker({"step_seconds": 0.1}, monkeypatch)
    name = await bench.create(steps=10)
    await bench.until(name, lambda job: job.step_count >= 1)
    await first.stop()
    bench.workers.remove(first)
    await asyncio.sleep(2)
    await bench.start_worker({}, monkeypatch)
    job = await bench.ended(name)
    assert job.state == SUCCEEDED and len(job.attempts) == 1
    assert [point.step for point in await bench.metrics(name, "train/loss")] == list(range(1, 11))


async def test_streams_follow_and_resume_after_a_cursor(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await bench.start_worker({"step_seconds": 0.05}, monkeypatch)
    name = await bench.create(steps=30)
    seen: list[int] = []
    last = 0
    while len(seen) < 60:
        request = pb.StreamMetricsRequest(name=name, after_ordinal=last)
        async with contextlib.aclosing(client.stream(bench.trainer.StreamMetrics(request))) as replies:
            async for reply in replies:
                seen += [point.ordinal for point in reply.points]
                last = reply.last_ordinal
                if len(seen) % 3 == 0:
                    break  # the client goes away in the middle and comes back
    assert seen == list(range(1, 61))


async def test_one_stream_tells_of_states_and_checkpoints_in_order(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.start_worker({"save_at": [3, 6], "spoil_at": [3]}, monkeypatch)
    name = await bench.create()
    followed = await bench.events(name)
    told = [_told(message) for message in followed]
    assert [word for word in told if "step" not in word] == ["QUEUED", "RUNNING", "SUCCEEDED"]
    assert told[2:-1] == ["step-3 VERIFYING", "step-3 CORRUPT", "step-6 VERIFYING", "step-6 READY"]
    cursors = [message.last_sequence for message in followed]
    assert cursors == sorted(set(cursors))
    assert (await bench.ended(name)).sequence == cursors[-1], "the job says where its events stand"
    for place, cursor in enumerate(cursors):
        assert await bench.events(name, after_sequence=cursor) == followed[place + 1 :]
    assert await bench.events(name, stored_only=True) == followed
    other = await bench.create()
    await bench.ended(other)
    assert await bench.events(name) == followed, "nothing of another job"
    with pytest.raises(InvalidArgument):
        await bench.events(name, after_sequence=-1)


async def test_a_failure_is_told_with_its_remedy_before_the_state_it_leads_to(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.mesh.runs.handler._RETRY_SECONDS", 0.1)
    await bench.start_worker({"die_at": 2, "fail_at": 4}, monkeypatch)
    followed = await bench.events(await bench.create())
    died, queued, *_, failed, end = followed[2:]
    assert [_told(message) for message in followed] == [
        "QUEUED", "RUNNING", "error of attempt 1", "QUEUED", "RUNNING", "error of attempt 2", "FAILED",
    ]  # fmt: skip
    assert died.job_error.retried and "died" in died.job_error.status.message
    assert not failed.job_error.retried and failed.job_error.remedy == "smaller batch"
    assert failed.job_error.status == end.training_job.error
    for error, state in ((died, queued), (failed, end)):
        resumed = await bench.events(end.training_job.name, after_sequence=error.last_sequence)
        assert resumed[:2] == [error, state], "who is cut off between the two misses neither"


async def test_a_request_id_of_another_request_is_refused(bench: Bench) -> None:
    job = training_job_pb2.TrainingJob(algorithm="sft", base_model=f"{PARENT}/models/base", dataset_version=VERSION)
    job.params.update({"batch_size": 8, "max_length": 32})
    request = pb.CreateTrainingJobRequest(parent=PARENT, training_job=job, request_id=str(names.uuid7()))
    await asyncio.gather(*(client.call(bench.trainer.CreateTrainingJob(request)) for _ in range(8)))
    listed = await client.call(bench.trainer.ListTrainingJobs(pb.ListTrainingJobsRequest(parent=PARENT)))
    assert len(listed.training_jobs) == 1
    async with await psycopg.AsyncConnection.connect(bench.database_url) as connection:
        await connection.execute("UPDATE trainer.models SET state = 'FAILED'")
    again = await client.call(bench.trainer.CreateTrainingJob(request))
    assert again.name == listed.training_jobs[0].name, "what was accepted once is not checked again"
    request.training_job.priority = 5
    with pytest.raises(AlreadyExists):
        await client.call(bench.trainer.CreateTrainingJob(request))


async def test_higher_priority_goes_first(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.values["RLHF_TRAINER_CONCURRENCY"] = "1"
    names_by_priority = {}
    for priority in (0, 10, -10):
        name = await bench.create()
        async with await psycopg.AsyncConnection.connect(bench.database_url) as connection:
            await connection.execute("UPDATE trainer.jobs SET priority = %s WHERE name = %s", (priority, name))
        names_by_priority[priority] = name
    await bench.start_worker({}, monkeypatch)
    jobs = {priority: await bench.ended(name) for priority, name in names_by_priority.items()}
    started = sorted(jobs, key=lambda priority: jobs[priority].start_time.ToDatetime())
    assert started == [10, 0, -10]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
