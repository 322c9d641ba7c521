"""GRPO in a whole mesh whose processes are killed and stopped one by one: each costs an attempt, and none the job."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from services.mesh.processes import procfs
from services.mesh.runs import processes
from tests.fix_live import GRPO, GRPO_PARAMS, LiveMesh, live_home, wait_until

# One job that is hit four times takes some eight minutes on two cores.
pytestmark = [pytest.mark.slow, pytest.mark.long]

PARAMS = {
    **GRPO_PARAMS,
    "validation__rows": 8,
    "save_every_steps": 4,
    "epochs": 100,
    # Which an untrained model meets now and then: of a job that learns nothing would be said so in the end.
    "reward__name": "regex",
    "reward__params__pattern": "1",
    "reward__params__mode": "search",
}
# Of the job, by what it is an actor of; and Ray's own.
ACTORS = ("TransferQueueController", "SimpleStorageUnit", "WorkerDict", "TransformersServer")
RAYS_OWN = ("gcs_server", "raylet")
# Until a new attempt is in training, on a machine that is busy: what is asserted is that it comes.
AGAIN_SECONDS = 420


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveMesh]:
    """It waits less long for a sign of life than by default, and gives a run that is hit often more tries."""
    settings = {"RLHF_SUPERVISOR_PATIENCE_SECONDS": "15", "RLHF_TRAINER_MAX_RETRIES": "20"}
    with live_home(tmp_path_factory.mktemp("lost"), **settings) as mesh:
        yield mesh


def folder_of(mesh: LiveMesh, job: str) -> Path:
    """Of the job's newest attempt."""
    plans = [path for path in mesh.home.glob("trainer/jobs/*/attempts/*/plan.json") if job_of(path) == job]
    return max(plans, key=lambda path: int(path.parent.name)).parent


def job_of(plan: Path) -> str:
    return json.loads(plan.read_text())["job"].rpartition("/")[2]


def pid_of(mesh: LiveMesh, job: str, victim: str) -> int:
    if victim == "runner":
        return mesh.run_pid(job)
    if victim in RAYS_OWN:
        family = procfs.tree(mesh.pids()["ray"])
        [found] = [pid for pid in family if Path(f"/proc/{pid}/comm").read_text().strip() == victim]
        return found
    [found] = [each.id.pid for each in processes.read(folder_of(mesh, job)) if each.name.startswith(f"{victim} ")]
    return found


def in_training(mesh: LiveMesh, job: str, attempt: int) -> dict[str, Any]:
    """The job once so many attempts were made, and the last of them has taken a step."""

    def trains(found: dict[str, Any]) -> bool:
        attempts = found.get("attempts", [])
        assert "endTime" not in found, found
        if len(attempts) < attempt or found.get("phase") != "training":
            return False
        return int(found["stepCount"]) > int(attempts[-1].get("resumedFromStep", 0))

    return mesh.until(job, trains, AGAIN_SECONDS)


def hit(mesh: LiveMesh, job: str, victims: list[tuple[str, signal.Signals]]) -> list[str]:
    """Send each its signal, one to each attempt; the reasons with which the attempts ended."""
    for number, (victim, what) in enumerate(victims, 1):
        in_training(mesh, job, number)
        os.kill(pid_of(mesh, job, victim), what)
        made: Callable[[dict[str, Any]], bool] = lambda found, number=number: len(found["attempts"]) > number  # noqa: E731
        mesh.until(job, made, AGAIN_SECONDS)
    found = in_training(mesh, job, len(victims) + 1)
    return [attempt["endReason"] for attempt in found["attempts"][: len(victims)]]


def ended_well(mesh: LiveMesh, job: str, steps: int) -> None:
    """Succeeded, with each step once, and no process of any of its attempts left."""
    found = mesh.ended(job)
    assert found["state"] == "JOB_STATE_SUCCEEDED", found
    text = mesh.rlhf("job", "metrics", job, "--metric", "reward/mean", "-o", "csv").stdout
    assert [int(row["step"]) for row in csv.DictReader(io.StringIO(text))] == list(range(1, steps + 1))
    folders = [path.parent for path in mesh.home.glob("trainer/jobs/*/attempts/*/plan.json") if job_of(path) == job]
    wait_until(lambda: not any(processes.read(folder) for folder in folders), "its processes to be gone", 60)


def test_a_job_survives_the_loss_of_its_queue_its_storage_a_stopped_worker_and_ray(mesh: LiveMesh) -> None:
    job = mesh.train("grpo", *GRPO, **PARAMS, steps=60)
    reasons = hit(
        mesh,
        job,
        [
            ("TransferQueueController", signal.SIGKILL),
            ("SimpleStorageUnit", signal.SIGKILL),
            ("WorkerDict", signal.SIGSTOP),
            ("gcs_server", signal.SIGKILL),
        ],
    )
    for reason, lost in zip(reasons, ("TransferQueueController", "SimpleStorageUnit", "WorkerDict"), strict=False):
        assert "the training process died: WORKER_DIED" in reason and lost in reason, reasons
    assert "the training process died" in reasons[3], reasons
    ended_well(mesh, job, 60)


@pytest.mark.parametrize("_time", range(3))
@pytest.mark.parametrize("victim", ["runner", *ACTORS, *RAYS_OWN])
def test_a_job_survives_the_loss_of(mesh: LiveMesh, victim: str, _time: int) -> None:
    """Each of its processes and of Ray's, killed and then stopped."""
    job = mesh.train("grpo", *GRPO, **PARAMS, steps=40)
    reasons = hit(mesh, job, [(victim, signal.SIGKILL), (victim, signal.SIGSTOP)])
    assert all("the training process died" in reason for reason in reasons), reasons
    ended_well(mesh, job, 40)
