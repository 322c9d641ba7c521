"""What a run knows of the steps that earlier attempts of its job have taken: real spools and plans."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from services.mesh.runs.files import PLAN_FILE, SPOOL_FILE
from services.mesh.runs.process import Control
from services.mesh.runs.spool import Metrics, SpoolWriter
from services.trainer.training import launch_plan as plans
from services.trainer.training.launch_plan import ResumePoint
from services.trainer.verl.reporting import StepReporter
from tests.unit.trainer.test_plan import PLAN
from tests.unit.trainer.test_run_health import REWARDED, SOUND

IDLE = {**SOUND, "train/grad_norm": 0.0}
Steps = Mapping[int, Mapping[str, float]]


def attempts(home: Path, started_at: int, resumed_at: int, *earlier: Steps) -> StepReporter:
    """The reporter of one that goes on at `resumed_at`, after `earlier` ones, the first of which began at another."""
    folder, plan, writer = home, PLAN, SpoolWriter(home / "none")
    for number, steps in enumerate((*earlier, {}), 1):
        start = started_at if number == 1 else resumed_at
        folder = home / str(number)
        folder.mkdir()
        resume = ResumePoint(start, "/s") if start else None
        plan = replace(PLAN, attempt=number, resume_from=resume, work_dir=str(folder), total_steps=9)
        (folder / PLAN_FILE).write_bytes(plans.encode(plan))
        writer = SpoolWriter(folder / SPOOL_FILE)
        for step, values in steps.items():
            writer.append(Metrics(step=step, values=dict(values)))
            writer.append(Metrics(step=step, values={"validation/loss": 1.0}))
    reporter = StepReporter(plan, writer, Control(folder))
    reporter.take_up()
    return reporter


def ends_idle(reporter: StepReporter) -> bool:
    """Whether a last step without effect makes the job one that has learnt nothing."""
    reporter.log({"train/grad_norm": 0.0}, 9)
    return reporter.nothing_learnt() is not None


def test_a_job_that_goes_on_from_anothers_has_learnt_in_every_attempt(tmp_path: Path) -> None:
    assert not ends_idle(attempts(tmp_path, 7, 8, {8: IDLE}))


def test_steps_of_earlier_attempts_count(tmp_path: Path) -> None:
    assert not ends_idle(attempts(tmp_path, 0, 2, {1: REWARDED, 2: IDLE}))


def test_a_step_that_was_taken_twice_counts_once_as_it_was_the_last_time(tmp_path: Path) -> None:
    reporter = attempts(tmp_path, 0, 3, {1: IDLE, 2: IDLE, 3: REWARDED}, {2: IDLE, 3: IDLE})
    found = reporter.nothing_learnt()
    assert found is not None and "any of its 3 steps" in found.message
