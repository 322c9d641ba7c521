"""What others hear of a version, and what the service hears of training jobs."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from rlhf.dataset.v1 import dataset_service_pb2 as pb
from rlhf.event.v1.dataset_version_created_pb2 import DatasetVersionCreated
from rlhf.event.v1.training_job_changed_pb2 import TrainingJobChanged
from rlhf.trainer.v1 import training_job_pb2
from rlhf.type.v1 import job_state_pb2

from services.mesh.db.postgres import Database
from services.mesh.errors import FailedPrecondition
from services.mesh.events.bus import connect
from services.mesh.events.outbox import Bus, EventLog, Relay
from services.mesh.rpc.client import call
from tests.integration.dataset.caller import Caller, lines, prompt_rows
from tests.integration.dataset.conftest import process, serving

JOB = "projects/default/trainingJobs/job"


async def test_one_version_is_one_event(own: dict[str, str]) -> None:
    async with serving(own) as caller:
        with process("services.dataset.worker", own, "worker"):
            dataset = await caller.dataset()
            first = await caller.upload(dataset.name, lines(prompt_rows(2)), "a.jsonl")
            await caller.upload(dataset.name, lines(prompt_rows(2)), "the-same-rows.jsonl")
            await caller.upload(dataset.name, lines([{"not": "valid"}]), "bad.jsonl")
            second = await caller.upload(dataset.name, lines(prompt_rows(3)), "b.jsonl")
        events = await heard(own["RLHF_NATS_URL"], 2)
        versions = [await caller.version(upload.dataset_version) for upload in (first, second)]
    assert [event["subject"] for event in events] == [version.name for version in versions]
    assert {event["type"] for event in events} == {DatasetVersionCreated.DESCRIPTOR.full_name}
    assert [event["data"]["datasetVersion"]["sha256"] for event in events] == [version.sha256 for version in versions]


async def heard(url: str, count: int) -> list[dict[str, Any]]:
    """All events of new versions, once there are `count`, and whatever comes within a second more."""
    connection = await connect(url)
    try:
        subscription = await connection.jetstream().subscribe("rlhf.event.v1.DatasetVersionCreated.default")
        found = []
        with contextlib.suppress(asyncio.TimeoutError):
            while True:
                message = await subscription.next_msg(timeout=20 if len(found) < count else 1)
                found.append(json.loads(message.data))
        return found
    finally:
        await connection.close()


class Trainer:
    """Tells of training jobs as the trainer does: an outbox of its own and a relay."""

    def __init__(self, database: Database, log: EventLog) -> None:
        self._database, self._log = database, log

    async def tell(self, sequence: int, state: str, *versions: str) -> None:
        job = training_job_pb2.TrainingJob(
            name=JOB,
            dataset_version=versions[0],
            validation_dataset_version=versions[-1],
            state=job_state_pb2.JobState.Value(f"JOB_STATE_{state}"),
            sequence=sequence,
        )
        async with self._database.transaction() as connection:
            event = TrainingJobChanged(training_job=job, uses=[*versions, "projects/default/models/base"])
            await self._log.add(connection, JOB, sequence, event)


@contextlib.asynccontextmanager
async def trainer(own: dict[str, str]) -> AsyncIterator[Trainer]:
    database = Database(own["RLHF_POSTGRES_URL"], "trainer")
    await database.migrate("services.mesh")
    log = EventLog(database)
    async with database, Bus(own["RLHF_NATS_URL"], "trainer") as bus:
        relay = asyncio.create_task(Relay("trainer", database, log, bus).run())
        try:
            yield Trainer(database, log)
        finally:
            relay.cancel()
            await asyncio.gather(relay, return_exceptions=True)


async def noted(own: dict[str, str], sequence: int, rows: int) -> None:
    """Wait until the service has taken in an event."""
    database = Database(own["RLHF_POSTGRES_URL"], "dataset")
    async with database, asyncio.timeout(30):
        while True:
            async with database.transaction() as connection:
                cursor = await connection.execute("SELECT count(*) FROM uses WHERE sequence >= %s", (sequence,))
                if await cursor.fetchone() == (rows,):
                    return
            await asyncio.sleep(0.05)


async def delete(caller: Caller, name: str) -> None:
    await call(caller.stub.DeleteDataset(pb.DeleteDatasetRequest(name=name)))


async def test_dataset_in_use_cannot_be_deleted(own: dict[str, str]) -> None:
    async with serving(own) as caller, trainer(own) as told:
        used, validation, other = [(await caller.dataset()).name for _ in range(3)]
        versions = f"{used}/versions/1", f"{validation}/versions/7"
        await told.tell(1, "QUEUED", *versions)
        await told.tell(2, "RUNNING", *versions)
        await noted(own, 2, 2)
        for name in used, validation:
            with pytest.raises(FailedPrecondition) as refused:
                await delete(caller, name)
            assert refused.value.reason == "DATASET_IN_USE"
            assert JOB in refused.value.message
        await delete(caller, other)
        await told.tell(4, "SUCCEEDED", *versions)
        await noted(own, 4, 2)
        await delete(caller, used)
        # What comes late does not bring the job back to life.
        await told.tell(3, "RUNNING", *versions)
        await told.tell(5, "SUCCEEDED", f"{other}/versions/1")
        await noted(own, 5, 1)
        await delete(caller, validation)
