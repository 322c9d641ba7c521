"""Warnings of a job: stored with what they were found with, counted, bounded, told to watchers; scripted runs, real
PostgreSQL, NATS and gRPC.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from rlhf.trainer.v1 import trainer_service_pb2 as pb
from rlhf.trainer.v1.training_job_pb2 import TrainingJob
from rlhf.type.v1.job_warning_pb2 import JobWarning as Message

from services.mesh.db.postgres import Connection, Database
from services.mesh.jobs import warnings as job_warnings
from services.mesh.jobs.store import Job, Jobs
from services.mesh.jobs.warnings import LEFT_OUT, MAX_DISTINCT, JobWarning, JobWarnings, Severity
from services.mesh.rpc import client
from services.trainer.entities import TrainingSpec
from services.trainer.training.checks import check
from tests.fix_member import new_job
from tests.integration.trainer.test_runs import PARENT, SUCCEEDED, VERSION, Bench, bench

__all__ = ["bench"]

NOW = datetime(2026, 1, 1, tzinfo=UTC)


async def test_a_warning_of_a_run_is_a_record_of_the_job_and_an_event_of_its_own(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.mesh.runs.handler._RETRY_SECONDS", 0.1)
    await bench.start_worker({"warn_at": [2, 3, 5], "save_at": [4], "die_at": 4}, monkeypatch)
    name = await bench.create()
    job = await bench.ended(name)
    assert job.state == SUCCEEDED
    first, second = job.warnings
    assert (first.attempt, first.first_step, first.last_step, first.count) == (1, 2, 3, 2)
    assert (second.attempt, second.first_step, second.last_step, second.count) == (2, 5, 5, 1)
    assert (first.reason, first.severity) == ("GRADIENT_ZERO", Message.SEVERITY_WARNING)
    assert (first.message, first.remedy) == ("at 3?", "r"), "that of the last time, and storable"
    assert first.first_time.ToDatetime() <= first.last_time.ToDatetime()
    logs = client.stream(bench.trainer.StreamLogs(pb.StreamLogsRequest(name=name)))
    lines = [line.text async for reply in logs for line in reply.lines]
    assert lines and all(line.startswith("step ") for line in lines), "the log has none of it"
    told = await bench.events(name)
    warned = [message for message in told if message.WhichOneof("event") == "warning"]
    assert [(m.warning.reason, m.warning.attempt) for m in warned] == [("GRADIENT_ZERO", 1), ("GRADIENT_ZERO", 2)]
    # An error has the cursor before the state that it led to.
    cursors = [message.last_sequence for message in told if message.WhichOneof("event") != "job_error"]
    assert cursors == sorted(set(cursors)) and job.sequence == cursors[-1]
    assert told[-1].training_job.warnings == job.warnings, "an event of the job shows them as well"
    listed = await client.call(bench.trainer.ListTrainingJobs(pb.ListTrainingJobsRequest(parent="projects/default")))
    assert listed.training_jobs[0].warnings == job.warnings
    async with await psycopg.AsyncConnection.connect(bench.database_url) as connection:
        cursor = await connection.execute(
            "SELECT resource, payload->>'trainingJob' FROM trainer.events"
            " WHERE type = 'rlhf.event.v1.TrainingJobWarned'"
        )
        assert await cursor.fetchall() == [(name, name)] * 2


async def test_what_is_found_at_create_is_told_by_every_answer_from_the_first_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check_and_warn(*args: Any) -> TrainingSpec:
        found = JobWarning(reason="ROWS_LEFT_OUT", message="3 of 64 rows", remedy="raise max_length")
        return replace(await check(*args), warnings=(found,))

    monkeypatch.setattr("services.trainer.training.service.check", check_and_warn)
    job = TrainingJob(algorithm="sft", base_model=f"{PARENT}/models/base", dataset_version=VERSION)
    job.params.update({"batch_size": 8, "max_length": 32, "steps": 6})
    request = pb.CreateTrainingJobRequest(parent=PARENT, training_job=job, validate_only=True)
    [checked] = (await client.call(bench.trainer.CreateTrainingJob(request))).warnings
    assert (checked.reason, checked.message, checked.remedy) == ("ROWS_LEFT_OUT", "3 of 64 rows", "raise max_length")
    assert (checked.attempt, checked.count, checked.HasField("first_time")) == (0, 1, False)
    request.validate_only = False
    made = await client.call(bench.trainer.CreateTrainingJob(request))
    assert [warning.first_time for warning in made.warnings] == [made.create_time]
    await bench.start_worker({"warn_at": [1]}, monkeypatch)
    ended = await bench.ended(made.name)
    assert [(w.attempt, w.reason) for w in ended.warnings] == [(0, "ROWS_LEFT_OUT"), (1, "GRADIENT_ZERO")]
    first, *_ = await bench.events(made.name)
    assert first.training_job.warnings == made.warnings


async def test_a_job_holds_a_bounded_number_of_warnings_and_counts_the_rest(database: Database, jobs: Jobs) -> None:
    announced: list[JobWarning] = []

    async def announce(connection: Connection, job: Job, warning: JobWarning) -> None:
        announced.append(warning)

    warnings = JobWarnings(announce)
    job = await new_job(database, jobs, "a")
    for batch in range(4):
        async with database.transaction() as connection:
            found = [_warning(key=str(n), step=batch) for n in range(MAX_DISTINCT * 2)]
            severity = [Severity.INFO, Severity.ERROR, Severity.INFO, Severity.WARNING][batch]
            await warnings.add(connection, job, [replace(each, severity=severity) for each in found])
    async with database.transaction() as connection:
        found = (await job_warnings.of(connection, [job.uid]))[job.uid]
    assert len(found) == MAX_DISTINCT
    assert [warning.key for warning in found[:-1]] == [str(n) for n in range(MAX_DISTINCT - 1)]
    assert {(w.count, w.first_step, w.last_step) for w in found[:-1]} == {(4, 0, 3)}
    assert {w.severity for w in found} == {Severity.ERROR}, "a repetition does not lower it"
    assert (found[-1].reason, found[-1].count) == (LEFT_OUT, 4 * (MAX_DISTINCT + 1))
    assert "ROWS_LEFT_OUT: a message" in found[-1].message
    assert [warning.reason for warning in announced] == [warning.reason for warning in found], "each once"


def _warning(key: str, step: int) -> JobWarning:
    at = NOW + timedelta(seconds=step)
    return JobWarning(
        reason="ROWS_LEFT_OUT",
        key=key,
        message="a message",
        first_step=step,
        last_step=step,
        attempt=1,
        first_time=at,
        last_time=at,
    )
