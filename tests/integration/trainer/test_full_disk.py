"""A disk that is full, a real one: what waits for room is written once there is, what cannot wait names its cause."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from rlhf.trainer.v1 import trainer_service_pb2 as pb
from rlhf.type.v1 import job_state_pb2

from services.mesh.rpc import client
from services.mesh.runs import handler
from services.mesh.runs.runners import Entrypoint
from services.mesh.runs.runners.local import LocalRun
from services.mesh.runs.spool import Metrics, Phase, Problem, SpoolWriter
from services.trainer.runs.records import read_from
from tests.fix_member import until
from tests.integration.trainer import test_runs

bench = test_runs.bench
Bench = test_runs.Bench
SIZE_BYTES = 256 * 1024
SAVE = """
import sys, torch
from safetensors.torch import save_file
from services.trainer.verl.failures import explain
tensors = {"a": torch.zeros(200_000)}
for save, name in ((torch.save, "x.pt"), (save_file, "x.safetensors")):
    try:
        save(tensors, f"{sys.argv[1]}/{name}")
    except Exception as error:
        print(explain(error).reason, explain(error).remedy)
"""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own, full but for a few bytes; `ballast` is what fills it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_BYTES},mode=700", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a disk can be mounted by root only")
    try:
        fill(folder)
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path) -> None:
    with (disk / "ballast").open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            pass


def test_spool_keeps_its_records_until_there_is_room(disk: Path) -> None:
    path = disk / "spool.jsonl"
    writer = SpoolWriter(path)
    for step in range(1, 1001):
        writer.append(Metrics(step=step, values={"train/loss": 1.0}))
    assert read_from(path, 0)[0] == []
    assert not writer.drain(0)
    (disk / "ballast").unlink()
    writer.append(Phase(phase="verifying"))
    records, _ = read_from(path, 0, 1 << 30)
    assert [record.step for record in records if isinstance(record, Metrics)] == list(range(1, 1001))
    assert isinstance(records[-1], Phase)
    assert writer.lost == 0


def test_spool_that_runs_full_in_the_middle_loses_nothing(disk: Path) -> None:
    """At some record the disk takes a part of the line: that part is told as a broken line, the record comes whole."""
    path = disk / "spool.jsonl"
    (disk / "ballast").write_bytes(b"x" * (SIZE_BYTES - 5 * 4096))
    writer = SpoolWriter(path)
    for step in range(1, 1001):
        writer.append(Metrics(step=step, values={"train/loss": 1.0}))
    (disk / "ballast").unlink()
    assert writer.drain(10)
    records, _ = read_from(path, 0, 1 << 30)
    assert [record.step for record in records if isinstance(record, Metrics)] == list(range(1, 1001))
    assert len([record for record in records if isinstance(record, Problem)]) <= 1


def test_last_word_of_a_run_waits_for_room(disk: Path) -> None:
    writer = SpoolWriter(disk / "spool.jsonl")
    writer.append(Phase(phase="the last"))
    free = threading.Timer(0.5, (disk / "ballast").unlink)
    free.start()
    assert writer.drain(30)
    free.join()
    assert [record.phase for record in read_from(disk / "spool.jsonl", 0)[0] if isinstance(record, Phase)] == [
        "the last"
    ]


def test_saving_a_checkpoint_tells_what_is_full_and_what_to_do(disk: Path) -> None:
    done = subprocess.run([sys.executable, "-c", SAVE, str(disk)], capture_output=True, text=True, check=True)
    reasons = done.stdout.splitlines()
    assert len(reasons) == 2
    assert all(line.startswith("DISK_FULL free space") for line in reasons), reasons


async def test_checkpoint_waits_for_room_in_the_artifact_store(
    bench: Bench, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handler, "_DISK_SECONDS", 0.05)
    model = bench.home / "artifacts"
    (disk / "ballast").unlink()
    shutil.copytree(model, disk / "artifacts")
    fill(disk)
    bench.values["RLHF_ARTIFACTS_URL"] = f"file://{disk}/artifacts"
    await bench.start_worker({"save_at": [3, 6]}, monkeypatch)
    name = await bench.create()
    job = await bench.until(name, lambda job: job.phase == "waiting_for_disk")
    assert job.state == job_state_pb2.JOB_STATE_RUNNING
    assert not list((disk / "artifacts").rglob("*writing*/*"))
    (disk / "ballast").unlink()
    assert (await bench.ended(name)).state == test_runs.SUCCEEDED
    assert [point.step for point in await bench.metrics(name, "train/loss")] == [1, 2, 3, 4, 5, 6]
    assert len(await bench.checkpoints(name)) == 2


async def test_a_job_that_waits_for_room_can_be_cancelled(
    bench: Bench, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its run ends at once and gives its slots back; what it saved is stored once there is room."""
    monkeypatch.setattr(handler, "_DISK_SECONDS", 0.05)
    (disk / "ballast").unlink()
    shutil.copytree(bench.home / "artifacts", disk / "artifacts")
    fill(disk)
    bench.values["RLHF_ARTIFACTS_URL"] = f"file://{disk}/artifacts"
    await bench.start_worker({"save_at": [1], "step_seconds": 0.1}, monkeypatch)
    name = await bench.create(steps=10_000)
    await bench.until(name, lambda job: job.phase == "waiting_for_disk")
    (folder,) = (bench.home / "trainer" / "jobs").glob("*/attempts/1")
    run = LocalRun(folder, Entrypoint("", "", {}))
    assert run.is_alive()
    await client.call(bench.trainer.CancelTrainingJob(pb.CancelTrainingJobRequest(name=name)))
    await until(lambda: not run.is_alive())
    (disk / "ballast").unlink()
    assert (await bench.ended(name)).state == job_state_pb2.JOB_STATE_CANCELLED
    assert len(await bench.checkpoints(name)) == 1


def test_a_run_that_cannot_be_asked_to_stop_is_ended(tmp_path: Path) -> None:
    """For want of room for the question."""

    class Deaf(LocalRun):
        killed = False

        def kill(self) -> None:
            self.killed = True

    run = Deaf(tmp_path, Entrypoint("", "", {}))
    run.request_stop()
    assert not run.killed and run.was_told_to_stop()
    (tmp_path / "control.json").unlink()
    (tmp_path / "control.json").mkdir()
    run.request_stop()
    assert run.killed
