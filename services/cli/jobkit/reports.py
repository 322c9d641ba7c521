"""Commands that show what jobs report: logs, samples, metrics."""

from __future__ import annotations

import collections
import csv
import fnmatch
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from services.cli import completions, display, exit_codes, output
from services.cli.jobkit import views
from services.cli.jobkit.kind import JobKind
from services.cli.output import DocumentOption
from services.cli.session import collect, run

if TYPE_CHECKING:
    from rlhf.type.v1.log_line_pb2 import LogLine
    from rlhf.type.v1.metric_point_pb2 import MetricPoint
    from rlhf.type.v1.sample_pb2 import Sample

    from services.client import AsyncClient
    from services.client._async.jobs import AsyncJobs

_SAMPLE_WIDTH = 120


def add(app: typer.Typer, kind: JobKind) -> None:
    _add_logs(app, kind)
    _add_samples(app, kind)
    _add_metrics(app, kind)


def _add_logs(app: typer.Typer, kind: JobKind) -> None:
    argument = completions.job_argument(kind)

    @app.command(
        help="What the job's processes printed.\n\n"
        f"Example: `rlhf {kind.command} logs {kind.example} --tail 50 --follow`"
    )
    def logs(
        context: typer.Context,
        job: str = argument,
        follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
        tail: Annotated[int, typer.Option(help="Only the last N lines; 0 shows all.", min=0)] = 0,
        output_format: Annotated[
            Literal["text", "json"], typer.Option("--output", "-o", help="json: one line each.")
        ] = "text",
    ) -> None:
        async def command(client: AsyncClient) -> None:
            await _logs(kind.jobs(client), kind.name(client, job), follow, tail, output_format)

        try:
            run(context, command)
        except KeyboardInterrupt:
            raise typer.Exit(exit_codes.INTERRUPTED) from None


def _add_samples(app: typer.Typer, kind: JobKind) -> None:
    argument = completions.job_argument(kind)

    @app.command(
        help="What the model answered, and what each answer was worth.\n\n"
        f"Example: `rlhf {kind.command} samples {kind.example} --split validation --step 100`"
    )
    def samples(
        context: typer.Context,
        job: str = argument,
        step: Annotated[int | None, typer.Option(help="Only of this step.", min=0)] = None,
        split: Annotated[str, typer.Option(help="`validation` or `rollout`; empty shows both.")] = "",
        limit: Annotated[int, typer.Option(help="At most so many; 0 shows all.", min=0)] = 20,
        output_format: DocumentOption = "table",
    ) -> None:
        async def command(client: AsyncClient) -> list[Sample]:
            jobs = kind.jobs(client)
            return await collect(jobs.samples(kind.name(client, job), step=step, split=split, limit=limit))

        found = run(context, command)
        columns = views.samples_table(found, _SAMPLE_WIDTH)
        output.show_list(found, columns, output_format, f"{job} has no such samples yet")


def _add_metrics(app: typer.Typer, kind: JobKind) -> None:
    rlhf, argument = f"rlhf {kind.command} metrics {kind.example}", completions.job_argument(kind)

    @app.command(
        help="The numbers that a job reported. In a table those under verl's own names are shown where a pattern asks"
        f" for them.\n\nExamples:\n\n- `{rlhf} --metric 'reward/*' --metric actor/kl`\n\n"
        f"- `{rlhf} -o csv > metrics.csv`"
    )
    def metrics(
        context: typer.Context,
        job: str = argument,
        metric: Annotated[
            list[str] | None, typer.Option(help="Only these, such as `reward/*`; may be repeated.")
        ] = None,
        all_attempts: Annotated[
            bool, typer.Option("--all-attempts", help="Also what a later attempt did again. With csv and json.")
        ] = False,
        output_format: Annotated[
            Literal["table", "csv", "json"], typer.Option("--output", "-o", help="table: one line a series.")
        ] = "table",
    ) -> None:
        patterns = metric or []
        points = run(context, lambda client: stored_points(kind.jobs(client), kind.name(client, job), patterns))
        if output_format == "table" or not all_attempts:
            points = views.effective(points)
        _show_metrics(points, output_format, hide_raw=not patterns)


def _show_metrics(points: list[MetricPoint], output_format: str, hide_raw: bool) -> None:
    if output_format == "json":
        output.write_json([output.as_json(point) for point in points])
    elif output_format == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(("metric", "step", "value", "attempt", "observe_time"))
        for point in points:
            time = point.observe_time.ToJsonString()
            writer.writerow((point.metric, point.step, repr(point.value), point.attempt, time))
    elif points:
        found = views.series(points)
        shown = {name: series for name, series in found.items() if not (hide_raw and name.startswith("verl/"))}
        output.show(output.table(views.SERIES, shown.items()))
        if len(shown) < len(found):
            output.hint(f"and {len(found) - len(shown)} series under verl's own names: --metric 'verl/*'")
    else:
        output.say("no metrics yet" if hide_raw else "no metrics of these names: without --metric all are shown")


async def stored_points(jobs: AsyncJobs[Any, Any], job: str, patterns: list[str]) -> list[MetricPoint]:
    """The points so far whose metric fits one of the patterns (all, without one)."""
    points = jobs.metrics(job, follow=False)
    return [point async for point in points if _fits(point.metric, patterns)]


async def _logs(jobs: AsyncJobs[Any, Any], job: str, follow: bool, tail: int, output_format: str) -> None:
    """The stored lines, of them the last `tail`; then, to follow, the lines after those."""
    cursor = 0
    if tail:
        kept: collections.deque[LogLine] = collections.deque(maxlen=tail)
        async for line in jobs.logs(job, follow=False):
            kept.append(line)
        _print_lines(kept, output_format)
        cursor = kept[-1].ordinal if kept else 0
    if follow or not tail:
        async for line in jobs.logs(job, after_ordinal=cursor, follow=follow):
            _print_lines([line], output_format)


def _print_lines(lines: Iterable[LogLine], output_format: str) -> None:
    for line in lines:
        if output_format == "json":
            output.write_json_line(output.as_json(line))
        else:
            sys.stdout.write(display.clean(line.text) + "\n")
    sys.stdout.flush()


def _fits(metric: str, patterns: list[str]) -> bool:
    return not patterns or any(fnmatch.fnmatchcase(metric, pattern) for pattern in patterns)
