"""The disk is really free after a deletion: bytes are counted before and after."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
from rlhf.dataset.v1 import dataset_service_pb2 as pb

from services.mesh.artifacts import references
from services.mesh.errors import FailedPrecondition
from services.mesh.rpc.client import call
from tests.integration.dataset.caller import State, eventually, lines, prompt_rows
from tests.integration.dataset.conftest import process, serving

JOB = "projects/default/trainingJobs/j"


def used_bytes(home: Path) -> int:
    """Bytes that datasets and uploads occupy in a home, the store's own mark aside."""
    folders = (home / "artifacts", home / "uploads")
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file() and path.name != "references"]
    return sum(path.stat().st_size for path in files)


async def test_a_deleted_dataset_and_what_failed_leave_nothing_on_the_disk(own: dict[str, str]) -> None:
    home = Path(own["RLHF_HOME"])
    with process("services.dataset.worker", own):
        async with serving(own) as caller:
            assert used_bytes(home) == 0
            # Twenty chunks' worth: rows of 10 kB.
            rows = prompt_rows(2000, padding=10_000)
            data = lines(rows)
            version = await caller.filled(rows)
            one = version.name.rpartition("/versions/")[0]
            size = used_bytes(home)
            assert size > 2 * len(data) * 0.9, "the rows, and the file that they came in"
            # Other content of the last row only: most chunks are shared. And the same rows in another file.
            other = (await caller.filled([*rows[:-1], *prompt_rows(1, start=9999)])).name.rpartition("/versions/")[0]
            assert (await caller.upload(one, data + b"\n")).state == State.STATE_SUCCEEDED
            # Rejected at its last row, when its chunks are stored.
            failed = await caller.upload(other, lines([*prompt_rows(2000, start=5000, padding=10_000), {"no": "row"}]))
            assert failed.state == State.STATE_FAILED
            half = await caller.announce(other, data, "again.jsonl")
            await caller.write(half.name, data[: len(data) // 2])
            await call(caller.stub.DeleteDataset(pb.DeleteDatasetRequest(name=one)))
            await eventually(lambda: used_bytes(home) < size + len(data))
            assert (await caller.download(f"{other}/versions/1")).count(b"\n") == 2000
            await call(caller.stub.DeleteDataset(pb.DeleteDatasetRequest(name=other)))
            await eventually(lambda: used_bytes(home) == 0)


async def test_rows_that_a_job_reads_stay_and_their_dataset_is_not_deleted(own: dict[str, str]) -> None:
    """Even before the trainer's event has come: the job's own transaction has written it down."""
    home = Path(own["RLHF_HOME"])
    with process("services.dataset.worker", own):
        async with serving(own) as caller:
            version = await caller.filled(prompt_rows(3))
            dataset = version.name.rpartition("/versions/")[0]
            async with await psycopg.AsyncConnection.connect(own["RLHF_POSTGRES_URL"]) as connection:
                await references.add(connection, JOB, version.sha256, version.name)
            with pytest.raises(FailedPrecondition, match=f"used by jobs that have not ended: {JOB}"):
                await call(caller.stub.DeleteDataset(pb.DeleteDatasetRequest(name=dataset)))
            assert (await caller.download(version.name)).count(b"\n") == 3
            async with await psycopg.AsyncConnection.connect(own["RLHF_POSTGRES_URL"]) as connection:
                await references.drop(connection, JOB)
            await call(caller.stub.DeleteDataset(pb.DeleteDatasetRequest(name=dataset)))
            await eventually(lambda: used_bytes(home) == 0)
