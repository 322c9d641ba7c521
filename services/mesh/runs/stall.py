"""Noticing a run that hangs: how long it may be silent, by what it does and by how fast it was.

A run reports every step, each change of phase, and once a minute that it waits, for slots, for Ray or for a judge. What
no rule here can tell from a hang is a first step, or a load, that takes longer than STEPLESS times the setting.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable

from services.mesh.runs.runners import Run
from services.mesh.runs.spool import Phase

# The limit, in median steps; and in times of the setting where no step has been timed, or none is being taken.
STEPS = 20
STEPLESS = 6
# At which a model is read, or saved with its optimizer, at the least: a large one may be silent for longer.
BYTES_PER_SECOND = 20_000_000
# How long its process may be stopped (SIGSTOP).
STOPPED_SECONDS = 20.0
_TIMED_STEPS = 101


class Stall:
    """Of one run, followed by one worker."""

    def __init__(self, stall_seconds: float, model_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._stall_seconds = stall_seconds
        self._model_seconds = model_bytes / BYTES_PER_SECOND
        self._clock = clock
        self._heard_at = clock()
        self._stopped_at: float | None = None
        self._phase = Phase(phase="starting")
        self._step_seconds: deque[float] = deque(maxlen=_TIMED_STEPS)

    def heard(self) -> None:
        """Something was read, or nothing could be: the run is not to blame for that."""
        self._heard_at = self._clock()

    def phase(self, record: Phase) -> None:
        """Take the time of steps from what the run says of itself."""
        before, self._phase = self._phase, record
        steps = record.step - before.step
        seconds = (record.time_ns - before.time_ns) / 1e9
        if record.phase == before.phase == "training" and steps > 0 and seconds > 0:
            self._step_seconds.append(seconds / steps)

    def limit_seconds(self) -> float:
        if self._phase.phase == "training" and self._step_seconds:
            allowed = max(self._stall_seconds, STEPS * statistics.median(self._step_seconds))
        else:
            allowed = STEPLESS * self._stall_seconds
        return allowed + self._model_seconds

    def fault(self, run: Run) -> str:
        """Why the run, which lives, counts as hung; empty where it does not."""
        now = self._clock()
        if not run.is_stopped():
            self._stopped_at = None
        elif self._stopped_at is None:
            self._stopped_at = now
        elif now - self._stopped_at > STOPPED_SECONDS:
            return f"it has been stopped (SIGSTOP) for {STOPPED_SECONDS:.0f} s"
        silent = now - self._heard_at
        if silent <= self.limit_seconds():
            return ""
        usual = f", where a step takes {statistics.median(self._step_seconds):.3g} s" if self._step_seconds else ""
        return f"it has said nothing for {silent:.0f} s in phase {self._phase.phase}{usual}"
