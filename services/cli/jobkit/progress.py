"""Where a running job stands, put together from states, points and checkpoints; and how a person sees it."""

from __future__ import annotations

import collections
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from services.cli import display
from services.cli.headline import VALIDATION, text
from services.cli.jobkit import views
from services.client import references

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rlhf.type.v1.job_warning_pb2 import JobWarning
    from rlhf.type.v1.metric_point_pb2 import MetricPoint

    from services.client import AsyncClient

# Steps over which the pace is averaged.
_PACE_STEPS = 20


class Series(Protocol):
    """A series of metrics, and what a person calls it."""

    @property
    def metric(self) -> str: ...
    @property
    def title(self) -> str: ...


class Progress:
    """Takes what the streams send, in any mixture and more than once, and knows the present.

    `headline` are the series to show.
    """

    def __init__(self, job: Any, headline: Sequence[Series] = ()) -> None:
        self.job = job
        self.headline = tuple(headline)
        self.step = job.step_count
        # Latest by metric: (attempt, step), value.
        self._latest: dict[str, tuple[tuple[int, int], float]] = {}
        # When each of the last steps was reported, in seconds; of the newest attempt only.
        self._times: collections.deque[tuple[int, float]] = collections.deque(maxlen=_PACE_STEPS + 1)
        self._attempt = 0
        # Attempt, reason and first step of those that were said.
        self._warned: set[tuple[int, str, int]] = set()

    def take_job(self, job: Any) -> list[str]:
        """A newer state; what is worth saying about it."""
        said: list[str] = []
        if len(job.attempts) > max(1, len(self.job.attempts)):
            ended = job.attempts[-2]
            resumed = job.attempts[-1].resumed_from_step
            why = f" ({display.one_line(ended.end_reason, 120)})" if ended.end_reason else ""
            said.append(f"attempt {ended.number} ended{why}; attempt {ended.number + 1} goes on from step {resumed}")
        if job.sequence >= self.job.sequence:
            self.job = job
            self.step = max(job.step_count, self._reported_step())
        return said + self.take_warnings(job.warnings)

    def take_event(self, event: Any) -> list[str]:
        """A message of the stream of events; what is worth saying about it."""
        kind = event.WhichOneof("event")
        if kind == "warning":
            return self.take_warnings([event.warning])
        found = getattr(event, kind)
        return self.take_job(found) if type(found) is type(self.job) else []

    async def refresh(self, client: AsyncClient) -> list[str]:
        """Look at what a kind of job has besides and no stream carries; what is worth saying about it."""
        return []

    def take_warnings(self, warnings: Iterable[JobWarning]) -> list[str]:
        """The facts about them that have not been told."""
        said = []
        for found in warnings:
            if (key := (found.attempt, found.reason, found.first_step)) not in self._warned:
                self._warned.add(key)
                said.append(f"warning: {views.warning(found)}")
        return said

    def take_points(self, points: Iterable[MetricPoint]) -> None:
        for point in points:
            key = (point.attempt, point.step)
            if point.metric not in self._latest or key >= self._latest[point.metric][0]:
                self._latest[point.metric] = (key, point.value)
            if point.attempt > self._attempt:
                self._attempt = point.attempt
                self._times.clear()
            if point.attempt == self._attempt and not point.metric.startswith(VALIDATION):
                self._take_time(point.step, display.seconds(point.observe_time))
        self.step = max(self.job.step_count if self._attempt <= 1 else 0, self._reported_step())

    @property
    def total(self) -> int:
        return self.job.total_step_count

    @property
    def step_seconds(self) -> float:
        """Seconds a step of late; NaN before two are known."""
        if len(self._times) < 2:
            return math.nan
        (first, begin), (last, end) = self._times[0], self._times[-1]
        return (end - begin) / (last - first)

    @property
    def left_seconds(self) -> float:
        return (self.total - self.step) * self.step_seconds

    def values(self) -> list[tuple[str, str]]:
        """Names and values worth a glance; a value of an earlier step says so."""
        shown = []
        for series in self.headline:
            if series.metric in self._latest:
                (_, step), value = self._latest[series.metric]
                at = f" (step {step})" if series.metric.startswith(VALIDATION) else ""
                shown.append((series.title, text(series.metric, value) + at))
        return shown

    def _take_time(self, step: int, seconds: float) -> None:
        if not self._times or step > self._times[-1][0]:
            self._times.append((step, seconds))

    def _reported_step(self) -> int:
        return self._times[-1][0] if self._times else 0


def phase(progress: Progress) -> str:
    """`training`, `cancelling`, `queued behind a running`: what the job is doing."""
    state = views.state(progress.job)
    running = state == "RUNNING" and progress.job.phase
    doing = progress.job.phase.replace("_", " ") if running else state.lower()
    return f"{doing} {views.queued_behind(progress.job)}".rstrip()


def pace(progress: Progress) -> str:
    """`1.3 s/step, 1:54 left`; before that is known how long it has been waited, and nothing after the end."""
    if views.ended(progress.job):
        return ""
    if not math.isfinite(progress.step_seconds):
        waited = display.took(progress.job.create_time, progress.job.end_time)
        return f"{waited} so far" if waited else ""
    left = f", {display.duration(progress.left_seconds)} left" if progress.total > progress.step else ""
    return f"{progress.step_seconds:.2g} s/step{left}" if progress.step_seconds < 100 else left.removeprefix(", ")


def line(progress: Progress) -> str:
    """Everything on one line, for logs and pipes."""
    parts = [f"{references.short(progress.job.name)} {phase(progress)}"]
    if progress.total:
        parts.append(f"step {progress.step}/{progress.total}")
    parts += [f"{title} {text}" for title, text in progress.values()]
    return "  ".join([*parts, pace(progress)]).rstrip()


def panel(progress: Progress) -> RenderableType:
    """A bar with its numbers, and the values under it; fits from 40 columns up."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.spinner import Spinner
    from rich.table import Table
    from rich.text import Text

    head = Table.grid(padding=(0, 1, 0, 0), expand=True)
    waiting = progress.step == 0 and not views.ended(progress.job)
    head.add_column(no_wrap=True)
    head.add_column(ratio=1, min_width=8)
    head.add_column(no_wrap=True, justify="right")
    bar = ProgressBar(total=progress.total or 1, completed=progress.step, pulse=waiting)
    counted = f"{progress.step}/{progress.total}" if progress.total else ""
    title = Spinner("dots", Text(phase(progress))) if not views.ended(progress.job) else Text(phase(progress))
    head.add_row(title, bar, counted)
    values = Text("  ").join(Text.assemble((f"{title} ", "dim"), text) for title, text in progress.values())
    pieces = [values] if values.plain else []
    if pace(progress):
        pieces.append(Text(pace(progress), style="dim"))
    return Group(head, Text("   ").join(pieces)) if pieces else head
