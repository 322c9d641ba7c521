"""When a run counts as hung, and when it is merely slow."""

from __future__ import annotations

from pathlib import Path

from services.mesh.runs.runners import Entrypoint
from services.mesh.runs.runners.local import LocalRun
from services.mesh.runs.spool import Phase
from services.mesh.runs.stall import STEPLESS, STEPS, STOPPED_SECONDS, Stall

SECOND = 1_000_000_000


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class StandingRun(LocalRun):
    stopped = False

    def is_stopped(self) -> bool:
        return self.stopped


def stall_of(steps: list[tuple[int, int]], model_bytes: int = 0) -> tuple[Stall, Clock]:
    """A run that has told of steps, each with the second at which it did."""
    clock = Clock()
    stall = Stall(600, model_bytes, clock)
    for step, second in steps:
        stall.phase(Phase(phase="training", step=step, total_steps=100, time_ns=second * SECOND))
        stall.heard()
    return stall, clock


def test_a_run_of_short_steps_may_be_silent_for_the_setting(tmp_path: Path) -> None:
    stall, clock = stall_of([(0, 0), (1, 2), (2, 4)])
    run = StandingRun(tmp_path, Entrypoint("python", "none", {}))
    clock.now += 600
    assert stall.fault(run) == ""
    clock.now += 1
    assert stall.fault(run) == "it has said nothing for 601 s in phase training, where a step takes 2 s"
    stall.heard()
    assert stall.fault(run) == ""


def test_a_run_of_long_steps_may_be_silent_for_many_of_them() -> None:
    stall, _ = stall_of([(0, 0), (1, 100), (2, 200), (3, 5000)])
    assert stall.limit_seconds() == STEPS * 100, "one long step, as one that saved, says nothing of the others"


def test_what_is_no_step_or_the_first_may_take_longer() -> None:
    stall, _ = stall_of([(0, 0)])
    assert stall.limit_seconds() == STEPLESS * 600
    stall, _ = stall_of([(0, 0), (1, 2), (2, 4)])
    stall.phase(Phase(phase="verifying", step=2, total_steps=100))
    assert stall.limit_seconds() == STEPLESS * 600


def test_a_large_model_may_take_its_time_to_be_saved() -> None:
    stall, _ = stall_of([(0, 0), (1, 2)], model_bytes=20_000_000_000)
    assert stall.limit_seconds() == 1600


def test_a_clock_that_jumps_makes_no_step_of_it() -> None:
    stall, _ = stall_of([(0, 1000), (1, 2), (2, 5)])
    assert stall.limit_seconds() == 600


def test_a_stopped_process_is_a_hang_before_that(tmp_path: Path) -> None:
    stall, clock = stall_of([(0, 0), (1, 2)])
    run = StandingRun(tmp_path, Entrypoint("python", "none", {}))
    run.stopped = True
    assert stall.fault(run) == ""
    clock.now += STOPPED_SECONDS + 1
    assert "stopped (SIGSTOP)" in stall.fault(run)
    run.stopped = False
    assert stall.fault(run) == "", "it went on"
    run.stopped = True
    assert stall.fault(run) == ""
