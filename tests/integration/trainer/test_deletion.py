"""Jobs, checkpoints and models are deleted with all that is theirs, and not while something needs them."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import psycopg
import pytest
from rlhf.trainer.v1 import model_pb2, training_job_pb2
from rlhf.trainer.v1 import trainer_service_pb2 as pb
from rlhf.type.v1 import checkpoint_pb2

from services.mesh import names
from services.mesh.artifacts import references
from services.mesh.errors import FailedPrecondition, InvalidArgument, NotFound
from services.mesh.rpc import client
from services.mesh.streams import store as series
from services.trainer.checkpoints.lifecycle import CheckpointLifecycle
from services.trainer.dataset_client import DatasetClient
from services.trainer.entities import DatasetVersion
from tests.integration.trainer import test_runs
from tests.integration.trainer.test_letting_go import training_states
from tests.integration.trainer.test_retention import only_weights, states, weights_there

bench = test_runs.bench
Bench = test_runs.Bench
PARENT = test_runs.PARENT
SCRIPT = {"save_at": [2, 4]}
# All that a job has in the database.
TABLES = ("checkpoints", "spools", "metric_points", "log_lines", "samples", "job_attempts")


async def delete_job(bench: Bench, name: str, *, force: bool = False) -> None:
    await client.call(bench.trainer.DeleteTrainingJob(pb.DeleteTrainingJobRequest(name=name, force=force)))


async def delete_checkpoint(bench: Bench, name: str, *, force: bool = False) -> checkpoint_pb2.Checkpoint:
    return await client.call(bench.trainer.DeleteCheckpoint(pb.DeleteCheckpointRequest(name=name, force=force)))


async def rows(bench: Bench, query: str, *parameters: object) -> list[tuple]:
    async with await psycopg.AsyncConnection.connect(bench.database_url) as connection:
        return await (await connection.execute(query.encode(), parameters)).fetchall()


def folders(bench: Bench) -> list[Path]:
    return list((bench.home / "trainer" / "jobs").iterdir())


async def test_a_deleted_job_leaves_nothing_but_its_events(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await bench.start_worker({**SCRIPT, "step_seconds": 0.3}, monkeypatch)
    before = set((bench.home / "artifacts").glob("??/*"))
    name = await bench.create()
    with pytest.raises(FailedPrecondition, match="cancel it, and delete it when it has ended"):
        await delete_job(bench, name)
    await bench.ended(name)
    told = await bench.events(name)
    assert folders(bench)
    await only_weights(bench, 2, 4)
    # Of another database that has the same folder.
    foreign = bench.home / "trainer" / "jobs" / str(names.uuid7())
    foreign.mkdir()
    monkeypatch.setattr(series, "DELETED_AT_ONCE", 5)
    [(uid,)] = await rows(bench, "SELECT uid FROM trainer.jobs WHERE name = %s", name)
    other = await bench.create()
    await bench.ended(other)
    await delete_job(bench, name)
    for call in (
        bench.trainer.GetTrainingJob(pb.GetTrainingJobRequest(name=name)),
        bench.trainer.GetCheckpoint(pb.GetCheckpointRequest(name=f"{name}/checkpoints/step-2")),
        bench.trainer.DeleteTrainingJob(pb.DeleteTrainingJobRequest(name=name)),
    ):
        with pytest.raises(NotFound):
            await client.call(call)
    for table in TABLES:
        assert await rows(bench, f"SELECT FROM trainer.{table} WHERE job_uid = %s", uid) == []
    assert await rows(bench, "SELECT FROM trainer.requests WHERE resource = %s", name) == []
    assert weights_there(bench) == {2, 4}, "the other job's are the same bytes"
    [(other_uid,)] = await rows(bench, "SELECT uid FROM trainer.jobs WHERE name = %s", other)
    async with asyncio.timeout(20), await psycopg.AsyncConnection.connect(bench.database_url) as user:
        await references.lock(user)
        deleting = asyncio.create_task(delete_job(bench, other))
        for table in ("metric_points", "log_lines", "samples"):
            while await rows(bench, f"SELECT FROM trainer.{table} WHERE job_uid = %s", other_uid):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert not deleting.done(), "it has its millions of points behind it when it makes others wait"
    await deleting
    async with asyncio.timeout(20):
        while folders(bench) != [foreign] or set((bench.home / "artifacts").glob("??/*")) != before:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    kinds = await rows(bench, "SELECT type, sequence FROM trainer.events WHERE resource = %s ORDER BY sequence", name)
    last = told[-1].last_sequence
    assert kinds[-1] == ("rlhf.event.v1.TrainingJobDeleted", last + 1)
    assert ("rlhf.event.v1.TrainingJobChanged", last) in kinds


async def test_a_job_that_takes_the_name_goes_on_with_its_events(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Consumers drop what is older than what they know; a watcher hears of its own job only."""
    first = await named(bench)
    await client.call(bench.trainer.CancelTrainingJob(pb.CancelTrainingJobRequest(name=first.name)))
    await delete_job(bench, first.name)
    again = await named(bench)
    assert again.sequence == first.sequence + 3, "after QUEUED, CANCELLED and deleted"
    await client.call(bench.trainer.CancelTrainingJob(pb.CancelTrainingJobRequest(name=again.name)))
    told = await bench.events(again.name)
    assert [test_runs._told(message) for message in told] == ["QUEUED", "CANCELLED"]
    assert told[0].last_sequence == again.sequence


async def named(bench: Bench) -> training_job_pb2.TrainingJob:
    job = training_job_pb2.TrainingJob(
        algorithm="sft", base_model=f"{PARENT}/models/base", dataset_version=test_runs.VERSION
    )
    job.params.update({"batch_size": 8, "max_length": 32, "steps": 6})
    request = pb.CreateTrainingJobRequest(
        parent=PARENT, training_job=job, training_job_id="same-name", request_id=str(names.uuid7())
    )
    return await client.call(bench.trainer.CreateTrainingJob(request))


async def test_what_others_need_of_a_job_is_named_and_kept(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await bench.start_worker(SCRIPT, monkeypatch)
    name = await bench.create()
    await bench.ended(name)
    await bench.workers.pop().stop()
    first, second = (f"{name}/checkpoints/step-{step}" for step in (2, 4))
    child = await bench.create(base_model=first)
    for call in (delete_job(bench, name), delete_checkpoint(bench, first)):
        with pytest.raises(FailedPrecondition, match=f"{child} use it\nWhat to do: .*force") as refused:
            await call
    assert refused.value.reason == "CHECKPOINT_IN_USE"
    gone = await delete_checkpoint(bench, second)
    assert (gone.state, gone.state_reason) == (checkpoint_pb2.Checkpoint.STATE_PRUNED, "deleted")
    assert await delete_checkpoint(bench, second) == gone, "the second time changes nothing"
    await delete_job(bench, name, force=True)
    # What the child starts from is there, and then nobody needs it.
    await bench.start_worker({"save_at": []}, monkeypatch)
    assert (await bench.ended(child)).state == test_runs.SUCCEEDED
    async with asyncio.timeout(20):
        while weights_there(bench):  # noqa: ASYNC110 - the worker removes them
            await asyncio.sleep(0.05)


async def test_a_deleted_checkpoint_takes_its_files_and_its_training_state(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(*_: object, **__: object) -> None:
        return None

    # As where training states of ended jobs are kept.
    monkeypatch.setattr(CheckpointLifecycle, "cleanup", nothing)
    await bench.start_worker({**SCRIPT, "fail_at": 5}, monkeypatch)
    name = await bench.create()
    await bench.ended(name)
    found = {one.step: one for one in await bench.checkpoints(name)}
    deleted = await delete_checkpoint(bench, found[4].name)
    assert deleted.training_state == checkpoint_pb2.Checkpoint.TRAINING_STATE_PRUNED and not deleted.files
    assert test_runs._told((await bench.events(name, stored_only=True))[-1]) == "step-4 PRUNED"
    async with asyncio.timeout(20):
        while weights_there(bench) != {2} or any("4" in path.parts[-3] for path in training_states(bench)):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert states(await bench.checkpoints(name)) == {4: "PRUNED", 2: "READY"}
    async with await psycopg.AsyncConnection.connect(bench.database_url) as connection:
        assert not await references.is_held(connection, found[4].manifest_sha256)


async def test_a_deleted_model_is_imported_again_by_the_same_request(bench: Bench) -> None:
    request = pb.ImportModelRequest(parent=PARENT, model_id="again", request_id=str(names.uuid7()))
    request.model.source.hub = "hf:some/model"
    first = await client.call(bench.trainer.ImportModel(request))
    async with await psycopg.AsyncConnection.connect(bench.database_url) as connection:
        # As the worker's import ends.
        await connection.execute("UPDATE trainer.models SET state = 'READY' WHERE name = %s", (first.name,))
    await client.call(bench.trainer.DeleteModel(pb.DeleteModelRequest(name=first.name)))
    again = await client.call(bench.trainer.ImportModel(request))
    assert (again.name, again.state) == (first.name, model_pb2.Model.STATE_IMPORTING)


@pytest.mark.parametrize("field", ["dataset_version", "validation_dataset_version"])
async def test_no_job_is_made_on_a_dataset_that_is_deleted_while_it_is_checked(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    """The version is deleted right after the service that has it has told of it, as far as the trainer can see."""
    held = f"{PARENT}/datasets/held/versions/1"
    deleted = f"{PARENT}/datasets/deleted/versions/1"
    tell = DatasetClient.version

    async def put(version: str) -> None:
        async with await psycopg.AsyncConnection.connect(bench.database_url, autocommit=True) as connection:
            await connection.execute("INSERT INTO artifacts.services VALUES ('dataset') ON CONFLICT DO NOTHING")
            async with connection.transaction():
                await references.add(connection, version, "d" * 64)

    async def tell_and_delete(self: DatasetClient, name: str) -> DatasetVersion:
        found = dataclasses.replace(await tell(self, name), name=name)
        if name == deleted:
            async with await psycopg.AsyncConnection.connect(bench.database_url) as connection:
                await references.lock(connection, exclusive=True)
                assert await references.users(connection, name.partition("/versions/")[0]) == []
                await references.drop_below(connection, name.partition("/versions/")[0])
        return found

    monkeypatch.setattr(DatasetClient, "version", tell_and_delete)
    for version in (held, deleted):
        await put(version)
    job = training_job_pb2.TrainingJob(
        algorithm="sft", base_model=f"{PARENT}/models/base", dataset_version=held, validation_dataset_version=held
    )
    setattr(job, field, deleted)
    job.params.update({"batch_size": 8, "max_length": 32, "steps": 2})
    request = pb.CreateTrainingJobRequest(parent=PARENT, training_job=job)
    with pytest.raises(InvalidArgument, match="was deleted a moment ago") as refused:
        await client.call(bench.trainer.CreateTrainingJob(request))
    assert [violation.field for violation in refused.value.violations] == [f"training_job.{field}"]
    listed = await client.call(bench.trainer.ListTrainingJobs(pb.ListTrainingJobsRequest(parent=PARENT)))
    assert not listed.training_jobs
    setattr(request.training_job, field, held)
    created = await client.call(bench.trainer.CreateTrainingJob(request))
    async with await psycopg.AsyncConnection.connect(bench.database_url) as connection:
        assert await references.users(connection, held.partition("/versions/")[0]) == [created.name]
