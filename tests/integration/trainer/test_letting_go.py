"""Nothing is let go that is wanted, and nothing stays that is not: failed jobs, corrupt checkpoints, two at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from rlhf.trainer.v1 import trainer_service_pb2 as pb
from rlhf.type.v1 import checkpoint_pb2, job_state_pb2

from services.mesh.artifacts import references
from services.mesh.artifacts.collecting_store import CollectingStore
from services.mesh.artifacts.gc import Collector
from services.mesh.db.postgres import Database
from services.mesh.errors import DataLoss, InvalidArgument
from services.mesh.events.outbox import EventLog
from services.mesh.rpc import client
from services.trainer import events
from services.trainer.checkpoints.lifecycle import CheckpointLifecycle
from services.trainer.training import service
from tests.integration.trainer import test_runs
from tests.integration.trainer.test_retention import RULE, states

bench = test_runs.bench
Bench = test_runs.Bench
PARENT = test_runs.PARENT
# The second of them goes when the third is READY: it is neither the best nor the last.
SCRIPT = {"save_at": [1, 2, 3], "scores": {"1": 0.9}}
KEPT = checkpoint_pb2.Checkpoint.TRAINING_STATE_KEPT


@pytest.fixture
async def keeper(bench: Bench) -> AsyncIterator[CheckpointLifecycle]:
    async with Database(bench.database_url, "trainer") as database:
        log = EventLog(database)
        jobs = events.jobs_of(database, log)
        announce = events.CheckpointAnnouncer(jobs, log)
        collector = Collector(database, CollectingStore(f"file://{bench.home}/artifacts"), 0)
        yield CheckpointLifecycle(database, jobs, collector, announce, bench.home / "trainer" / "jobs", 3)


def training_states(bench: Bench) -> list[Path]:
    return list((bench.home / "trainer" / "jobs").glob("*/attempts/*/checkpoints/*/training_state/*"))


async def test_a_job_that_failed_keeps_its_newest_training_state(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await bench.start_worker({"save_at": [2, 4], "fail_at": 5}, monkeypatch)
    name = await bench.create()
    assert (await bench.ended(name)).state == job_state_pb2.JOB_STATE_FAILED
    assert len(training_states(bench)) == 1
    found = await bench.checkpoints(name)
    assert states(found) == {4: "READY", 2: "READY"}
    assert [one.step for one in found if one.training_state == KEPT] == [4]


async def test_what_a_job_left_that_ended_without_its_handler_is_swept(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, keeper: CheckpointLifecycle
) -> None:
    async def nothing(*_: object, **__: object) -> None:
        return None

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointLifecycle, "cleanup", nothing)
        patch.setattr(CheckpointLifecycle, "sweep", nothing)
        await bench.start_worker({"save_at": [2, 4], "fail_at": 5}, monkeypatch)
        name = await bench.create()
        await bench.ended(name)
        left = {path.parents[1].name: path for path in training_states(bench)}
        assert left.keys() == {"step-2", "step-4"}
        running = await bench.create()
    await keeper.sweep()
    assert {step for step, path in left.items() if path.exists()} == {"step-4"}, "the newest, to go on from"
    assert [one.step for one in await bench.checkpoints(name) if one.training_state == KEPT] == [4]
    assert (await bench.ended(running)).state == job_state_pb2.JOB_STATE_FAILED


async def test_the_sound_shards_of_a_corrupt_checkpoint_go(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, keeper: CheckpointLifecycle
) -> None:
    weights = bench.home / "weights"
    weights.mkdir()
    for shard in ("a", "b"):
        (weights / f"{shard}.safetensors").write_text(f"shard {shard}")
    await bench.start_worker({"save_at": [6], "weights": str(weights)}, monkeypatch)
    name = await bench.create()
    await bench.ended(name)
    [found] = await bench.checkpoints(name)

    def there(shard: str) -> list[Path]:
        blobs = (bench.home / "artifacts").glob("??/*")
        return [path for path in blobs if path.read_bytes() == f"shard {shard}".encode()]

    [spoilt] = there("a")
    spoilt.write_bytes(b"shard A")
    request = pb.DownloadCheckpointRequest(name=found.name, path="a.safetensors")
    with pytest.raises(DataLoss):
        [reply async for reply in client.stream(bench.trainer.DownloadCheckpoint(request))]
    assert states(await bench.checkpoints(name)) == {6: "CORRUPT"}
    await keeper.sweep()
    assert not there("b")


class Held:
    """A function that waits in the middle until a test lets it go on."""

    def __init__(self, function: Any) -> None:
        self.reached, self.go_on = asyncio.Event(), asyncio.Event()
        self._function = function

    async def __call__(self, *arguments: Any, **named: Any) -> Any:
        self.reached.set()
        await self.go_on.wait()
        return await self._function(*arguments, **named)


async def ready(bench: Bench, name: str, step: int) -> None:
    async with asyncio.timeout(60):
        while states(await bench.checkpoints(name)).get(step) != "READY":  # noqa: ASYNC110 - another process's doing
            await asyncio.sleep(0.05)


async def someone_waits(bench: Bench, function: str) -> None:
    """For the lock of references."""
    waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE %s"
    connecting = psycopg.AsyncConnection.connect(bench.database_url, autocommit=True)
    async with asyncio.timeout(60), await connecting as connection:
        while not await (await connection.execute(waiting, (f"%{function}%",))).fetchone():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_a_checkpoint_that_a_job_is_being_created_from_is_not_let_go(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The creation has looked at it and not yet written its row when the rule of its own job would let it go."""
    third_step = bench.home / "third-step"
    await bench.start_worker({**SCRIPT, "hold_at": 3, "hold_until": str(third_step)}, monkeypatch)
    name = await bench.create(validation=test_runs.VERSION, checkpoints=RULE)
    await ready(bench, name, 2)
    creating = Held(service.hold_inputs)
    with monkeypatch.context() as patch:
        patch.setattr(service, "hold_inputs", creating)
        made = asyncio.create_task(bench.create(base_model=f"{name}/checkpoints/step-2"))
        await creating.reached.wait()
        third_step.touch()
        # The rule, which would let step 2 go.
        await someone_waits(bench, "pg_advisory_xact_lock(")
        creating.go_on.set()
        await made
    await bench.ended(name)
    assert states(await bench.checkpoints(name)) == {1: "READY", 2: "READY", 3: "READY"}


async def test_a_job_is_refused_a_checkpoint_that_is_being_let_go(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rule has looked at who uses it and not yet let it go when a job is created from it."""
    pruning, used = asyncio.Event(), references.used
    proceed = asyncio.Event()

    async def late(connection: Any, resource: str) -> frozenset[str]:
        found = await used(connection, resource)
        cursor = await connection.execute("SELECT count(*) FROM checkpoints WHERE state = 'READY'")
        if await cursor.fetchone() == (3,) and not pruning.is_set():
            pruning.set()
            await proceed.wait()
        return found

    monkeypatch.setattr(references, "used", late)
    await bench.start_worker(SCRIPT, monkeypatch)
    name = await bench.create(validation=test_runs.VERSION, checkpoints=RULE)
    await pruning.wait()
    made = asyncio.create_task(bench.create(base_model=f"{name}/checkpoints/step-2"))
    await someone_waits(bench, "pg_advisory_xact_lock_shared(")
    assert not made.done(), "it waits for what becomes of the checkpoint"
    proceed.set()
    with pytest.raises(InvalidArgument, match=r"training_job\.base_model: .*step-2 was let go a moment ago"):
        await made
    await bench.ended(name)
    assert states(await bench.checkpoints(name))[2] == "PRUNED"
