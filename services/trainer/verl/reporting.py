"""From verl's logger to the spool, and from the control file to the trainer, at every step boundary."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from services.mesh.runs.files import PLAN_FILE, SPOOL_FILE
from services.mesh.runs.process import Control
from services.mesh.runs.spool import Metrics, Phase, SpoolWriter
from services.trainer.runs.health import NothingLearnt, RunHealth
from services.trainer.runs.records import read_all
from services.trainer.training import launch_plan as plans
from services.trainer.training.launch_plan import LaunchPlan
from services.trainer.verl.metrics import translate

# Of the steps, in the job's log.
LOG_LINES = 100
SHOWN = ("train/loss", "train/grad_norm", "reward/mean", "rewards/accuracy", "rollout/truncated_fraction")


class StepReporter:
    """Stands where verl has its Tracking: `log` and `finish` are verl's calls."""

    def __init__(self, plan: LaunchPlan, spool: SpoolWriter, control: Control) -> None:
        self._plan = plan
        self._spool = spool
        self._control = control
        self._health = RunHealth(plan.task.learns_from)
        self._extra: dict[str, float] = {}
        self._last_step_at: float | None = None
        self.last_step = plan.start_step
        self.stopped = False

    def take_up(self) -> None:
        """See what earlier attempts have learnt; where that is not known it is assumed that they have."""
        if not self._plan.start_step:
            return
        attempts = [Path(self._plan.work_dir).with_name(str(number)) for number in range(1, self._plan.attempt)]
        known = all((folder / name).exists() for folder in attempts for name in (PLAN_FILE, SPOOL_FILE))
        # The first goes on from another job's training state where it goes on at all.
        if not attempts or not known or plans.read(attempts[0]).start_step:
            self._health.assume_learnt()
            return
        # Of a step that was taken again the last attempt has the word.
        steps: dict[int, dict[str, float]] = {}
        for folder in attempts:
            for record in read_all(folder / SPOOL_FILE):
                if isinstance(record, Metrics) and record.step <= self._plan.start_step:
                    steps.setdefault(record.step, {}).update(record.values)
        for step in sorted(steps):
            self._health.step(step, steps[step])

    def nothing_learnt(self) -> NothingLearnt | None:
        """Where the job has learnt nothing so far."""
        return self._health.nothing_learnt()

    def add(self, values: Mapping[str, float]) -> None:
        """Values of ours for the step that is being taken."""
        self._extra.update(values)

    def log(self, data: Mapping[str, Any], step: int, **_: object) -> None:
        values = {**translate(data), **self._extra}
        self._extra = {}
        now = time.monotonic()
        # verl's SFT trainer doesn't time its steps.
        if "time/step_seconds" not in values and self._last_step_at is not None:
            values["time/step_seconds"] = now - self._last_step_at
        self._last_step_at = now
        self.last_step = max(self.last_step, step)
        self._spool.append(Metrics(step=step, values=values))
        for problem in self._health.step(step, values):
            self._spool.append(problem)
        self._spool.append(Phase(phase="training", step=step, total_steps=self._plan.total_steps))
        self._print(step, values)

    def _print(self, step: int, values: Mapping[str, float]) -> None:
        """A line of the job's log, of so many steps that the log stays a page or two however many there are."""
        total = self._plan.total_steps
        if step % max(1, total // LOG_LINES) and step != total:
            return
        shown = "  ".join(f"{name} {values[name]:.4g}" for name in SHOWN if name in values)
        print(f"step {step} of {total}  {shown}", flush=True)

    def finish(self, exit_code: int = 0) -> None:
        pass

    def stop_requested(self) -> bool:
        """Whether the run is to end with this step; remembered, so that the run's outcome can say so."""
        self.stopped = self.stopped or self._control.stop_requested()
        return self.stopped
