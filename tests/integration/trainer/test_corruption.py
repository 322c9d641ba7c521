"""Bytes that are no longer what was stored: found before use, marked, stepped over. Scripted runs, real everything."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from rlhf.trainer.v1 import trainer_service_pb2 as pb
from rlhf.type.v1 import checkpoint_pb2, job_state_pb2

from services.mesh.artifacts import ArtifactStore
from services.mesh.errors import DataLoss, FailedPrecondition, InvalidArgument, Unavailable
from services.mesh.rpc import client
from services.mesh.runs import handler
from tests.integration.trainer import test_runs
from tests.integration.trainer.test_retention import states

bench = test_runs.bench
Bench = test_runs.Bench
Damage = Callable[[Path], None]


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def delete(path: Path) -> None:
    path.unlink()


damages = pytest.mark.parametrize("damage", [flip_a_byte, truncate, delete])


def blob(bench: Bench, found: checkpoint_pb2.Checkpoint) -> Path:
    """Where the weights of a checkpoint lie in the store."""
    text = f"weights {found.step}".encode()
    return next(path for path in (bench.home / "artifacts").glob("??/*") if path.read_bytes() == text)


async def get(bench: Bench, name: str) -> checkpoint_pb2.Checkpoint:
    return await client.call(bench.trainer.GetCheckpoint(pb.GetCheckpointRequest(name=name)))


async def download(bench: Bench, name: str) -> bytes:
    request = pb.DownloadCheckpointRequest(name=name, path="model.safetensors")
    return b"".join([reply.chunk async for reply in client.stream(bench.trainer.DownloadCheckpoint(request))])


async def test_a_store_that_is_not_mounted_is_not_corrupt(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await bench.start_worker({"save_at": [6]}, monkeypatch)
    name = await bench.create()
    await bench.ended(name)
    [found] = await bench.checkpoints(name)
    store, elsewhere = bench.home / "artifacts", bench.home / "unmounted"
    store.rename(elsewhere)
    with pytest.raises(Unavailable, match="no artifact store"):
        await get(bench, found.name)
    with pytest.raises(Unavailable, match="no artifact store"):
        await bench.create(base_model=found.name)
    elsewhere.rename(store)
    assert (await get(bench, found.name)).state == checkpoint_pb2.Checkpoint.STATE_READY
    assert await download(bench, found.name) == b"weights 6"


@damages
async def test_a_download_finds_it_marks_it_and_the_one_before_is_the_last(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, damage: Damage
) -> None:
    await bench.start_worker({"save_at": [3, 6]}, monkeypatch)
    name = await bench.create()
    await bench.ended(name)
    last, before = await bench.checkpoints(name)
    damage(blob(bench, last))
    with pytest.raises((DataLoss, FailedPrecondition)):
        await download(bench, last.name)
    assert states(await bench.checkpoints(name)) == {6: "CORRUPT", 3: "READY"}
    marked = await get(bench, last.name)
    assert "model.safetensors" in marked.state_reason and not marked.files
    assert test_runs._told((await bench.events(name, stored_only=True))[-1]) == "step-6 CORRUPT"
    with pytest.raises(FailedPrecondition, match="CORRUPT"):
        await download(bench, last.name)
    assert await download(bench, before.name) == b"weights 3"


@damages
async def test_a_job_does_not_start_from_it_and_is_told_what_to_start_from(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, damage: Damage
) -> None:
    await bench.start_worker({"save_at": [3, 6]}, monkeypatch)
    name = await bench.create()
    await bench.ended(name)
    last, before = await bench.checkpoints(name)
    damage(blob(bench, last))
    try:
        ended = await bench.ended(await bench.create(base_model=last.name))
        assert damage is flip_a_byte, "what is missing is seen before the job is made"
        assert ended.state == job_state_pb2.JOB_STATE_FAILED
        told = ended.error.message
    except InvalidArgument as error:
        told = str(error)
    assert f"start from {before.name}" in told
    assert states(await bench.checkpoints(name)) == {6: "CORRUPT", 3: "READY"}
    started = await bench.create(base_model=before.name)
    assert (await bench.ended(started)).state == test_runs.SUCCEEDED


async def test_the_same_bytes_can_be_stored_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A spoilt blob that stayed would be taken for the right one, its size being right."""
    await bench.start_worker({"save_at": [6]}, monkeypatch)
    name = await bench.create()
    await bench.ended(name)
    [found] = await bench.checkpoints(name)
    flip_a_byte(blob(bench, found))
    with pytest.raises(DataLoss):
        await download(bench, found.name)
    again = await bench.create()
    await bench.ended(again)
    [made] = await bench.checkpoints(again)
    assert made.manifest_sha256 == found.manifest_sha256
    assert await download(bench, made.name) == b"weights 6"


async def test_a_copy_of_a_model_that_changed_in_the_cache_is_made_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.start_worker({}, monkeypatch)
    await bench.ended(await bench.create())
    [cached] = (bench.home / "cache" / "models").iterdir()
    flip_a_byte(cached / "config.json")
    assert (await bench.ended(await bench.create())).state == test_runs.SUCCEEDED
    assert (cached / "config.json").read_text() == "{}"
    assert [path.name for path in cached.parent.iterdir()] == [cached.name]


@damages
async def test_a_resume_steps_over_a_spoilt_training_state(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, damage: Damage
) -> None:
    monkeypatch.setattr(handler, "retry_seconds", lambda deaths: 500.0)
    await bench.start_worker({"save_at": [2, 4], "die_at": 5, "step_seconds": 0.4}, monkeypatch)
    name = await bench.create()
    await bench.until(name, lambda job: len(job.attempts) == 1 and bool(job.attempts[0].end_reason))
    damage(next(bench.home.glob("trainer/jobs/*/attempts/1/checkpoints/step-4/training_state/state.pt")))
    async with await psycopg.AsyncConnection.connect(bench.database_url) as connection:
        await connection.execute("UPDATE trainer.jobs SET not_before = now() WHERE name = %s", (name,))
        await connection.execute("SELECT pg_notify('rlhf_trainer', 'queue')")
    await bench.until(name, lambda job: len(job.attempts) == 2)
    spoilt = next(one for one in await bench.checkpoints(name) if one.step == 4)
    job = await bench.ended(name)
    assert job.state == test_runs.SUCCEEDED
    assert [attempt.resumed_from_step for attempt in job.attempts] == [0, 2]
    assert spoilt.state == checkpoint_pb2.Checkpoint.STATE_READY, "its weights are as they were"
    assert spoilt.training_state == spoilt.TRAINING_STATE_CORRUPT
    again = await get(bench, spoilt.name)
    assert again.provenance.attempt == 2, "taken again, it takes the place of the spoilt one"


async def test_a_training_state_that_is_gone_altogether_is_stepped_over(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of two: the job begins anew rather than to fail."""
    monkeypatch.setattr(handler, "retry_seconds", lambda deaths: 500.0)
    await bench.start_worker({"save_at": [2], "die_at": 3}, monkeypatch)
    name = await bench.create()
    await bench.until(name, lambda job: len(job.attempts) == 1 and bool(job.attempts[0].end_reason))
    shutil.rmtree(next(bench.home.glob("trainer/jobs/*/attempts/1/checkpoints/step-2/training_state")))
    async with await psycopg.AsyncConnection.connect(bench.database_url) as connection:
        await connection.execute("UPDATE trainer.jobs SET not_before = now() WHERE name = %s", (name,))
        await connection.execute("SELECT pg_notify('rlhf_trainer', 'queue')")
    job = await bench.ended(name)
    assert job.state == test_runs.SUCCEEDED
    assert [attempt.resumed_from_step for attempt in job.attempts] == [0, 0]


async def test_a_checkpoint_says_what_it_was_made_from(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await bench.start_worker({"save_at": [3, 6]}, monkeypatch)
    name = await bench.create(validation=test_runs.VERSION, seed=7)
    job = await bench.ended(name)
    last, first = [await get(bench, one.name) for one in await bench.checkpoints(name)]
    made = last.provenance
    assert (made.job, made.attempt, made.algorithm, made.seed) == (name, 1, "sft", 7)
    assert (made.base_model, made.base_manifest_sha256) == (job.base_model, job.inputs.base_manifest_sha256)
    assert made.dataset_version == made.validation_dataset_version == test_runs.VERSION
    assert made.dataset_sha256 == made.validation_dataset_sha256 == "d" * 64 == job.inputs.dataset_sha256
    assert (made.previous_checkpoint, first.provenance.previous_checkpoint) == (first.name, "")
    assert made.software["verl"] == "0.9.1" and len(made.params_sha256) == 64
    manifest = await ArtifactStore(f"file://{bench.home}/artifacts").manifest(job.inputs.base_manifest_sha256)
    assert [file.path for file in manifest.files] == ["config.json"]
