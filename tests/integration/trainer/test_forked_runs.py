"""Runs that a fork server starts, when something dies: the server, before or after it has answered, or Ray's raylet."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.mesh.runs.files import SPOOL_FILE
from services.mesh.runs.runners import Entrypoint
from services.mesh.runs.runners.local import LocalRun
from services.mesh.runs.spool import End, Metrics
from services.trainer.runs.records import read_from
from services.trainer.training import launch_plan as plans
from services.trainer.training.handler import RUNNER
from tests.fix_runner import ENVIRONMENT, AttemptMaker, PrivateRay, start_ray

pytestmark = pytest.mark.slow
PARAMS = {"learning_rate": 2e-3, "batch_size": 32, "max_length": 32}


@pytest.fixture
def own_ray() -> Iterator[PrivateRay]:
    found = start_ray(cpus=1, gpus=1)
    yield found
    found.stop()


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_run_outlives_its_server_and_ends_with_its_raylet(
    own_ray: PrivateRay, tmp_path: Path, tiny_model: Path
) -> None:
    maker = AttemptMaker(tmp_path, tiny_model, own_ray.address, fork_server=own_ray.fork_server)
    attempt = maker("lasting", "sft", steps=1_000_000, **PARAMS)
    process = attempt.start()
    assert own_ray.forks is not None
    attempt.wait_for(lambda record: isinstance(record, Metrics) and record.step == 2)
    workers = own_ray.job_processes()
    assert workers and {_parent(worker) for worker in workers} == {own_ray.forks.process.pid}

    own_ray.forks.process.kill()
    own_ray.forks.process.wait()
    done = max(record.step for record in attempt.records() if isinstance(record, Metrics))
    attempt.wait_for(lambda record: isinstance(record, Metrics) and record.step > done + 20)
    assert process.poll() is None

    # With no word to its workers: only they can know.
    for title, pid in _rays_own(own_ray):
        if "raylet" in title:
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while left := [worker for worker in workers if Path(f"/proc/{worker}").exists()]:
        assert time.monotonic() < deadline, left
        time.sleep(0.2)
    process.wait(timeout=120)


def _rays_own(ray: PrivateRay) -> list[tuple[str, int]]:
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit() and int(path.name) != ray.process.pid:
            try:
                if _parent(int(path.name)) == ray.process.pid:
                    found.append(((path / "comm").read_text(), int(path.name)))
            except OSError:
                continue
    return found


async def test_a_run_starts_without_a_server_too(private_ray: PrivateRay, tmp_path: Path, tiny_model: Path) -> None:
    """One that is gone; the workers that Ray starts for the run do without it as well."""
    made = AttemptMaker(tmp_path, tiny_model, private_ray.address)("alone", "sft", steps=2, **PARAMS)
    run = LocalRun(made.folder, Entrypoint(sys.executable, RUNNER, ENVIRONMENT, tmp_path / "gone"))
    await run.start(plans.encode(made.plan))
    async with asyncio.timeout(200):
        while run.is_alive():  # noqa: ASYNC110 - a lock tells nobody
            await asyncio.sleep(0.2)
    records, _ = read_from(made.folder / SPOOL_FILE, 0, 1 << 30)
    assert isinstance(records[-1], End) and records[-1].outcome == "succeeded", records[-1]
    run.clear()


async def test_a_forked_run_holds_its_lock_and_can_be_killed(
    private_ray: PrivateRay, tmp_path: Path, tiny_model: Path
) -> None:
    made = AttemptMaker(tmp_path, tiny_model, private_ray.address)("held", "sft", steps=1_000_000, **PARAMS)
    run = LocalRun(made.folder, Entrypoint(sys.executable, RUNNER, ENVIRONMENT, private_ray.fork_server))
    await run.start(plans.encode(made.plan))
    assert run.is_alive()
    made.wait_for(lambda record: isinstance(record, Metrics) and record.step == 1)
    # Whoever takes the job over finds the run by its folder.
    LocalRun(made.folder, Entrypoint(sys.executable, RUNNER, ENVIRONMENT)).kill()
    async with asyncio.timeout(60):
        while run.is_alive():  # noqa: ASYNC110 - a lock tells nobody
            await asyncio.sleep(0.1)
    run.clear()
