"""What kills a run, and what is full: tried again in time, from what was saved, with a reason; nothing left behind."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import tempfile
from pathlib import Path
from typing import Any

import psycopg
import pytest
from rlhf.type.v1 import checkpoint_pb2, job_state_pb2

from services.mesh.artifacts import ArtifactStore, Manifest
from services.mesh.errors import ResourceExhausted
from services.mesh.runs import handler, processes
from services.mesh.runs.handler import retry_seconds
from services.trainer.training.preparation import Preparation
from tests.integration.trainer import test_runs

bench = test_runs.bench
Bench = test_runs.Bench
SUCCEEDED = test_runs.SUCCEEDED


def run_folders() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("rlhf-run-*"))


def test_pauses_double_and_differ() -> None:
    for deaths, middle in ((1, 5), (2, 10), (3, 20), (20, 300)):
        pauses = {retry_seconds(deaths) for _ in range(50)}
        assert len(pauses) == 50
        assert middle * 0.5 <= min(pauses) < max(pauses) <= middle * 1.5


async def test_job_that_waits_for_its_next_try_holds_no_lease_and_lets_the_more_urgent_pass(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for one job a more urgent one runs in the pause of the first, and a younger one does not."""
    monkeypatch.setattr(handler, "retry_seconds", lambda deaths: 500.0)
    bench.values["RLHF_TRAINER_CONCURRENCY"] = "1"
    await bench.start_worker({"die_at": 2}, monkeypatch)
    first = await bench.create()
    waiting = await bench.until(
        first, lambda job: job.state == job_state_pb2.JOB_STATE_QUEUED and len(job.attempts) > 0
    )
    assert "died" in waiting.attempts[0].end_reason
    await bench.workers.pop().stop()
    await bench.start_worker({}, monkeypatch)
    younger = await bench.create()
    assert (await bench.ended(await bench.create(priority=1))).state == SUCCEEDED
    async with await psycopg.AsyncConnection.connect(bench.database_url) as connection:
        cursor = await connection.execute("SELECT lease_owner, lease_token FROM trainer.jobs WHERE name = %s", (first,))
        assert await cursor.fetchone() == (None, None)
        await connection.execute("UPDATE trainer.jobs SET not_before = now() WHERE name = %s", (first,))
    ended = await bench.ended(first)
    assert ended.state == SUCCEEDED
    assert (await bench.ended(younger)).start_time.ToDatetime() >= ended.end_time.ToDatetime()


async def test_a_step_whose_metrics_died_with_the_run_is_taken_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though its checkpoint is READY: each step has its metrics, and none of them twice in an attempt."""
    monkeypatch.setattr(handler, "_RETRY_SECONDS", 0.05)
    await bench.start_worker({"save_at": [2, 4], "die_untold_at": 4}, monkeypatch)
    name = await bench.create()
    job = await bench.ended(name)
    assert job.state == SUCCEEDED
    assert [attempt.resumed_from_step for attempt in job.attempts] == [0, 2]
    loss = [(point.attempt, point.step) for point in await bench.metrics(name, "train/loss")]
    assert loss == [(1, 1), (1, 2), (1, 3), (2, 3), (2, 4), (2, 5), (2, 6)]
    assert [(one.step, one.state) for one in await bench.checkpoints(name)] == [
        (step, checkpoint_pb2.Checkpoint.STATE_READY) for step in (4, 2)
    ]


@pytest.mark.parametrize("reason", ["WORKER_DIED", "NODE_DIED", "RAY_UNREACHABLE"])
async def test_run_whose_ray_went_away_goes_on_from_its_checkpoint(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    monkeypatch.setattr(handler, "_RETRY_SECONDS", 0.05)
    await bench.start_worker({"save_at": [2], "fail_at": 4, "fail_reason": reason, "fail_attempts": 2}, monkeypatch)
    name = await bench.create()
    job = await bench.ended(name)
    assert job.state == SUCCEEDED
    assert [attempt.resumed_from_step for attempt in job.attempts] == [0, 2, 2]
    assert all(reason in attempt.end_reason for attempt in job.attempts[:2])
    effective = {point.step: point.attempt for point in await bench.metrics(name, "train/loss")}
    assert effective == {1: 1, 2: 1, 3: 3, 4: 3, 5: 3, 6: 3}


async def test_run_that_died_after_its_last_step_shows_all_steps(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second attempt has nothing left to train, and does not set the job back to step 0."""
    monkeypatch.setattr(handler, "_RETRY_SECONDS", 0.05)
    await bench.start_worker({"save_at": [6], "die_at": 6}, monkeypatch)
    job = await bench.ended(await bench.create())
    assert (job.state, len(job.attempts)) == (SUCCEEDED, 2)
    assert (job.step_count, job.total_step_count) == (6, 6)


async def test_what_dies_four_times_fails_with_reason_and_remedy_and_leaves_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handler, "_RETRY_SECONDS", 0.05)
    before = run_folders()
    await bench.start_worker({"save_at": [1], "die_at": 2, "die_attempts": 99}, monkeypatch)
    job = await bench.ended(await bench.create())
    assert job.state == job_state_pb2.JOB_STATE_FAILED
    assert [attempt.resumed_from_step for attempt in job.attempts] == [0, 1, 1, 1]
    assert "tried 4 times" in job.error.message
    assert "micro_batch_size" in job.error.message
    assert run_folders() <= before


async def test_stopped_by_a_signal_and_killed_while_it_saves_is_no_death(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mesh that is taken down more often than a run may die costs the job nothing."""
    await bench.start_worker({"save_at": [1, 2, 3, 4, 5], "stopped_and_killed_at": [1, 2, 3, 4, 5]}, monkeypatch)
    job = await bench.ended(await bench.create())
    assert job.state == SUCCEEDED
    assert [attempt.resumed_from_step for attempt in job.attempts] == [0, 1, 2, 3, 4, 5]
    assert all("told to stop" in attempt.end_reason for attempt in job.attempts[:5])


async def test_checkpoint_for_which_the_store_has_no_room_waits_and_nothing_is_lost(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handler, "_DISK_SECONDS", 0.05)
    put_folder = ArtifactStore.put_folder
    full = True

    async def put(self: ArtifactStore, folder: Path) -> Manifest:
        if full:
            raise ResourceExhausted("DISK_FULL", "the artifact store has no room left")
        return await put_folder(self, folder)

    monkeypatch.setattr(ArtifactStore, "put_folder", put)
    await bench.start_worker({"save_at": [3, 6]}, monkeypatch)
    name = await bench.create()
    job = await bench.until(name, lambda job: job.phase == "waiting_for_disk")
    assert job.state == job_state_pb2.JOB_STATE_RUNNING
    full = False
    assert (await bench.ended(name)).state == SUCCEEDED
    assert [point.step for point in await bench.metrics(name, "train/loss")] == [1, 2, 3, 4, 5, 6]
    assert len(await bench.checkpoints(name)) == 2


async def test_job_whose_rows_find_no_room_waits_for_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handler, "_DISK_SECONDS", 0.05)
    rows = Preparation._rows
    calls = 0

    async def no_room_at_first(self: Any, version: str, target: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return await rows(self, version, target)

    monkeypatch.setattr(Preparation, "_rows", no_room_at_first)
    await bench.start_worker({}, monkeypatch)
    job = await bench.ended(await bench.create())
    assert job.state == SUCCEEDED
    assert len(job.attempts) == 1, "no try was spent on it"


async def test_run_of_a_job_that_fails_for_another_reason_is_ended(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr("services.mesh.runs.follower.take_metrics", broken)
    before = run_folders()
    await bench.start_worker({"step_seconds": 0.2}, monkeypatch)
    name = await bench.create(steps=2000)
    job = await bench.ended(name)
    assert job.state == job_state_pb2.JOB_STATE_FAILED
    pid = json.loads(next(bench.home.glob("trainer/jobs/*/attempts/1/runner.json")).read_text())["pid"]
    async with asyncio.timeout(20):
        while test_runs.alive(pid):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert run_folders() <= before


async def test_killed_with_its_worker_it_goes_on_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run dies while no worker looks: the next one sees it, and spends one try on it."""
    monkeypatch.setattr(handler, "_RETRY_SECONDS", 0.05)
    first = await bench.start_worker({"step_seconds": 0.1, "save_at": [5]}, monkeypatch)
    name = await bench.create(steps=12)
    await bench.until(name, lambda job: job.step_count >= 6)
    await first.stop()
    bench.workers.remove(first)
    pid = json.loads(next(bench.home.glob("trainer/jobs/*/attempts/1/runner.json")).read_text())["pid"]
    os.kill(pid, signal.SIGKILL)
    await bench.start_worker({"save_at": [5]}, monkeypatch)
    job = await bench.ended(name)
    assert job.state == SUCCEEDED
    assert [attempt.resumed_from_step for attempt in job.attempts] == [0, 5]
    effective = {point.step: point.attempt for point in await bench.metrics(name, "train/loss")}
    assert effective == {step: 1 if step <= 5 else 2 for step in range(1, 13)}


async def test_a_run_that_hangs_is_killed_and_goes_on_from_its_checkpoint(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what it was doing is kept."""
    monkeypatch.setattr(handler, "_RETRY_SECONDS", 0.05)
    bench.values["RLHF_TRAINER_STALL_SECONDS"] = "2"
    await bench.start_worker({"save_at": [2], "hang_at": 4}, monkeypatch)
    name = await bench.create()
    job = await bench.ended(name)
    assert job.state == SUCCEEDED
    assert [attempt.resumed_from_step for attempt in job.attempts] == [0, 2]
    reason = job.attempts[0].end_reason
    assert "has said nothing for" in reason and "in phase training" in reason
    kept = Path(reason.rpartition(" is in ")[2])
    assert 'scripted_run.py", line' in kept.read_text()  # noqa: ASYNC240
    effective = {point.step: point.attempt for point in await bench.metrics(name, "train/loss")}
    assert effective == {1: 1, 2: 1, 3: 2, 4: 2, 5: 2, 6: 2}


async def test_a_run_that_is_slow_or_waits_is_left_alone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its steps are longer than the setting alone would have it, and it is timed by them."""
    bench.values["RLHF_TRAINER_STALL_SECONDS"] = "1"
    await bench.start_worker({"step_seconds": 1.5}, monkeypatch)
    job = await bench.ended(await bench.create())
    assert (job.state, len(job.attempts)) == (SUCCEEDED, 1)


async def test_a_stopped_run_is_killed_with_what_it_started(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handler, "_RETRY_SECONDS", 0.05)
    monkeypatch.setattr("services.mesh.runs.stall.STOPPED_SECONDS", 0.5)
    await bench.start_worker({"step_seconds": 0.1, "save_at": [5], "starts_another": True}, monkeypatch)
    name = await bench.create(steps=12)
    await bench.until(name, lambda job: job.step_count >= 6)
    folder = next(bench.home.glob("trainer/jobs/*/attempts/1"))
    [other] = processes.read(folder)
    os.kill(other.id.pid, signal.SIGSTOP)
    os.kill(json.loads((folder / "runner.json").read_text())["pid"], signal.SIGSTOP)
    job = await bench.ended(name)
    assert job.state == SUCCEEDED
    assert "stopped (SIGSTOP)" in job.attempts[0].end_reason
    assert [attempt.resumed_from_step for attempt in job.attempts] == [0, 5]
    assert not other.id.alive()
    assert not processes.read(folder)
