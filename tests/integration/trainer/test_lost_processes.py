"""A run that loses a process that it waits for, or Ray, ends by itself and says what it has lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from services.mesh.runs import processes
from services.mesh.runs.spool import End, Metrics
from services.trainer.runs.records import Checkpoint
from tests.fix_live import wait_until
from tests.fix_runner import Attempt, AttemptMaker, PrivateRay, start_ray

# Each takes minutes on two cores: a run that trains, loses something, and is waited for.
pytestmark = [pytest.mark.slow, pytest.mark.long]

PARAMS = {
    "learning_rate": 1e-3,
    "prompts_per_step": 4,
    "samples_per_prompt": 4,
    "max_prompt_length": 16,
    "max_response_length": 8,
    "save_every_steps": 2,
}
# Until it has noticed and left, on a machine that is busy.
END_SECONDS = 120


def in_training(attempt: Attempt) -> None:
    """Started, past its first checkpoint."""
    attempt.start()
    attempt.wait_for(lambda record: isinstance(record, Checkpoint) and record.state == "ready" and record.step == 2)
    attempt.wait_for(lambda record: isinstance(record, Metrics) and record.step == 3)


def pid_of(attempt: Attempt, name: str) -> int:
    """Of the process of the run that is an actor of this class."""
    [found] = [each.id.pid for each in processes.read(attempt.folder) if each.name.startswith(f"{name} ")]
    return found


def ended(attempt: Attempt) -> End | None:
    """The End of a run whose processes are gone, all of them; None where it could not say one."""
    left = processes.read(attempt.folder)
    assert left
    [runner] = attempt.started
    runner.wait(timeout=END_SECONDS)
    wait_until(lambda: not any(each.id.alive() for each in left), f"{left} to be gone", 60)
    records = attempt.records()
    steps = [record.step for record in records if isinstance(record, Metrics) and "reward/mean" in record.values]
    assert len(steps) >= 3 and steps == list(range(1, len(steps) + 1))
    ends = [record for record in records if isinstance(record, End)]
    if not ends:
        return None
    assert ends == records[-1:] and ends[0].outcome == "failed" and ends[0].step >= 3
    return ends[0]


@pytest.mark.parametrize(
    ("actor", "number"),
    [
        ("TransferQueueController", signal.SIGKILL),
        ("SimpleStorageUnit", signal.SIGKILL),
        ("WorkerDict", signal.SIGSTOP),
    ],
)
def test_a_process_of_the_run_is_lost(attempts: AttemptMaker, actor: str, number: signal.Signals) -> None:
    attempt = attempts("losing", "grpo", steps=100_000, **PARAMS)
    in_training(attempt)
    os.kill(pid_of(attempt, actor), number)
    end = ended(attempt)
    assert end is not None
    assert (end.reason, actor in end.message) == ("WORKER_DIED", True), end
    assert ("stopped" in end.message) == (number == signal.SIGSTOP), end
    assert end.traceback


@pytest.fixture
def own_ray(attempts: AttemptMaker) -> Iterator[PrivateRay]:
    """One that may be killed."""
    found = start_ray(cpus=2, gpus=1)
    attempts.ray_address, attempts.fork_server = found.address, found.fork_server
    yield found
    found.stop()


@pytest.mark.parametrize(
    ("part", "number", "reason"),
    [
        ("gcs_server", signal.SIGKILL, None),
        ("raylet", signal.SIGSTOP, "NODE_DIED"),
        ("gcs_server", signal.SIGSTOP, "RAY_UNREACHABLE"),
    ],
)
def test_ray_is_lost(
    own_ray: PrivateRay, attempts: AttemptMaker, part: str, number: signal.Signals, reason: str | None
) -> None:
    """Where it dies, its library may end the run before it can say a word; where it is stopped, the run says so."""
    attempt = attempts("losing", "grpo", steps=100_000, **PARAMS)
    in_training(attempt)
    os.kill(own_ray.part(part), number)
    end = ended(attempt)
    assert end is None or end.reason in ("NODE_DIED", "RAY_UNREACHABLE", "WORKER_DIED")
    assert reason in (None, end and end.reason), end
