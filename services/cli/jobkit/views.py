"""Jobs of any kind, their samples and their metrics as a person reads them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from services.cli import display
from services.cli.output import Column
from services.client import references

if TYPE_CHECKING:
    from rlhf.type.v1.job_warning_pb2 import JobWarning
    from rlhf.type.v1.metric_point_pb2 import MetricPoint
    from rlhf.type.v1.sample_pb2 import Sample

TERMINAL = ("SUCCEEDED", "FAILED", "CANCELLED")
# Of what a job waits behind.
_MOST_NAMED = 3


def columns(inputs: Sequence[Column], what: Sequence[Column] = ()) -> tuple[Column, ...]:
    """Columns of a list of jobs: `what` each is, and its `inputs`, among those of all jobs."""
    return (
        Column("JOB", lambda job: references.short(job.name), whole=True),
        *what,
        Column("STATE", listed_state),
        Column("STEP", steps, right=True),
        Column("WARNINGS", lambda job: str(len(job.warnings) or ""), right=True),
        *inputs,
        Column("TOOK", lambda job: display.took(job.start_time, job.end_time), right=True),
        Column("CREATED", lambda job: display.age(job.create_time)),
    )


def facts(
    job: Any, inputs: Sequence[tuple[str, str]], placement: Sequence[tuple[str, str]], rest: Sequence[tuple[str, str]]
) -> list[tuple[str, str]]:
    """The facts of a job in the order that all kinds show them; those that are empty are left out when shown."""
    return [
        ("job", references.short(job.name)),
        ("state", phase_and_state(job)),
        ("waits", queued_behind(job)),
        ("error", display.clean(job.error.message)),
        ("warnings", "\n".join(map(warning, job.warnings))),
        *inputs,
        ("step", steps(job)),
        *placement,
        ("created", display.moment(job.create_time)),
        ("started", display.moment(job.start_time)),
        ("ended", display.moment(job.end_time)),
        ("took", display.took(job.start_time, job.end_time)),
        ("attempts", attempts(job)),
        *rest,
    ]


def state(job: Any) -> str:
    from rlhf.type.v1.job_state_pb2 import JobState

    return JobState.Name(job.state).removeprefix("JOB_STATE_")


def phase_and_state(job: Any) -> str:
    """With its phase; empty of a job that was only checked."""
    if not job.state:
        return ""
    return state(job) + (f" ({job.phase})" if job.phase and not ended(job) else "")


def listed_state(job: Any) -> str:
    if not job.HasField("queued_behind"):
        return state(job)
    before = len(job.queued_behind.running) + job.queued_behind.ahead_count
    return f"{state(job)} (behind {before})" if before else state(job)


def queued_behind(job: Any) -> str:
    """`behind a and b, which run, and 3 queued before it: c, d, e`; empty of a job that waits for nothing."""
    if not job.HasField("queued_behind"):
        return ""
    found = job.queued_behind
    parts = [f"{_names(found.running, len(found.running))} running"] if found.running else []
    if found.ahead_count:
        parts.append(f"{_names(found.ahead, found.ahead_count)} queued before it")
    if found.HasField("retry_time"):
        parts.append(f"the next try, not before {display.moment(found.retry_time)}")
    return f"behind {', '.join(parts)}" if parts else "next to be taken"


def _names(names: Sequence[str], count: int) -> str:
    shown = [references.short(name) for name in names[:_MOST_NAMED]]
    more = f" and {count - len(shown)} more" if count > len(shown) else ""
    return f"{', '.join(shown)}{more}"


def ended(job: Any) -> bool:
    return state(job) in TERMINAL


def steps(job: Any) -> str:
    return f"{job.step_count}/{job.total_step_count}" if job.total_step_count else ""


def warning(found: JobWarning) -> str:
    """A warning of a job: its reason, text, remedy, and how often where it was more than once."""
    again = f" ({found.count} times, steps {found.first_step} to {found.last_step})" if found.count > 1 else ""
    remedy = f"; what to do: {found.remedy}" if found.remedy else ""
    return display.one_line(f"{found.reason}: {found.message}{again}{remedy}")


def attempts(job: Any) -> str:
    if len(job.attempts) < 2 and not any(attempt.end_reason for attempt in job.attempts):
        return ""
    lines = []
    for attempt in job.attempts:
        begun = f"from step {attempt.resumed_from_step}" if attempt.resumed_from_step else "from the beginning"
        ended_with = f"; ended: {display.one_line(attempt.end_reason)}" if attempt.end_reason else ""
        lines.append(f"{attempt.number}: {begun}, {display.took(attempt.start_time, attempt.end_time)}{ended_with}")
    return "\n".join(lines)


def samples_table(samples: Sequence[Sample], width: int) -> list[Column]:
    """Columns for samples; long prompts and completions are cut in the middle to `width`."""
    columns = [
        Column("STEP", lambda sample: str(sample.step), right=True),
        Column("ROW", lambda sample: str(sample.row_index), right=True),
        # An answer that is only there to be read has none.
        Column("SCORE", lambda sample: "–" if math.isnan(sample.score) else display.score(sample.score), right=True),
        Column("PROMPT", lambda sample: display.one_line(sample.prompt, width)),
        Column("COMPLETION", lambda sample: display.one_line(sample.completion, width)),
    ]
    if len({sample.split for sample in samples}) > 1:
        columns.insert(1, Column("OF", lambda sample: sample.split))
    if any(sample.answer for sample in samples):
        columns.append(Column("ANSWER", lambda sample: display.one_line(sample.answer, width)))
    if any(sample.parts for sample in samples):
        columns.append(Column("PARTS", lambda sample: _parts(sample)))
    return columns


def _parts(sample: Sample) -> str:
    return ", ".join(f"{name} {display.number(value)}" for name, value in sorted(sample.parts.items()))


def effective(points: Iterable[MetricPoint]) -> list[MetricPoint]:
    """For each metric and step the point of the highest attempt, the last one it reported; by metric, then step."""
    best: dict[tuple[str, int], MetricPoint] = {}
    for point in points:
        key = (point.metric, point.step)
        if key not in best or (point.attempt, point.ordinal) > (best[key].attempt, best[key].ordinal):
            best[key] = point
    return [best[key] for key in sorted(best)]


def series(points: Iterable[MetricPoint]) -> dict[str, list[MetricPoint]]:
    found: dict[str, list[MetricPoint]] = {}
    for point in points:
        found.setdefault(point.metric, []).append(point)
    return found


SERIES = (
    Column("METRIC", lambda item: item[0], whole=True),
    Column("POINTS", lambda item: str(len(item[1])), right=True),
    Column("FIRST", lambda item: display.number(item[1][0].value), right=True),
    Column("LAST", lambda item: display.number(item[1][-1].value), right=True),
    Column("LEAST", lambda item: display.number(_extreme(item[1], min)), right=True),
    Column("MOST", lambda item: display.number(_extreme(item[1], max)), right=True),
    Column("COURSE", lambda item: display.sparkline([point.value for point in item[1]])),
)


def _extreme(points: Sequence[MetricPoint], choose: Any) -> float:
    return choose((point.value for point in points if not math.isnan(point.value)), default=math.nan)
