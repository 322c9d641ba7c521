"""From verl's logger to the spool, and from the control file to the trainer, at every step boundary."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from services.trainer.plan import LaunchPlan
from services.trainer.spool import Metrics, Phase, SpoolWriter
from services.trainer.verl.control import Control
from services.trainer.verl.metrics import translate


class StepReporter:
    """Stands where verl has its Tracking: `log` and `finish` are verl's calls."""

    def __init__(self, plan: LaunchPlan, spool: SpoolWriter, control: Control) -> None:
        self._plan = plan
        self._spool = spool
        self._control = control
        self._extra: dict[str, float] = {}
        self._last_step_at: float | None = None
        self.last_step = plan.start_step
        self.stopped = False

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
        self._spool.append(Phase(phase="training", step=step, total_steps=self._plan.total_steps))

    def finish(self, exit_code: int = 0) -> None:
        pass

    def stop_requested(self) -> bool:
        """Whether the run is to end with this step; remembered, so that the run's outcome can say so."""
        self.stopped = self.stopped or self._control.stop_requested()
        return self.stopped
