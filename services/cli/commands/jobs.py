"""`rlhf job`: jobs, from queued to ended."""

from __future__ import annotations

import collections
import csv
import fnmatch
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from services.cli import completions, display, exit_codes, job_views, output
from services.cli.confirming import ForceOption, YesOption, confirm
from services.cli.output import DocumentOption, FormatOption
from services.cli.session import collect, run
from services.client import references
from services.mesh.errors import InvalidArgument

if TYPE_CHECKING:
    from rlhf.trainer.v1.training_job_pb2 import TrainingJob
    from rlhf.type.v1.job_state_pb2 import JobState
    from rlhf.type.v1.log_line_pb2 import LogLine
    from rlhf.type.v1.metric_point_pb2 import MetricPoint
    from rlhf.type.v1.sample_pb2 import Sample

    from services.client import AsyncClient

app = typer.Typer(help="Training jobs, from queued to ended.", no_args_is_help=True)

JobArgument = Annotated[
    str, typer.Argument(metavar="JOB", help="Such as `grpo-k3x9qa`.", autocompletion=completions.jobs)
]
LimitOption = Annotated[int, typer.Option(help="At most so many; 0 shows all.", min=0)]
_SAMPLE_WIDTH = 120


@app.command("list")
def list_jobs(
    context: typer.Context,
    state: Annotated[list[str] | None, typer.Option(help="Only these, such as `running`; may be given again.")] = None,
    limit: LimitOption = 50,
    output_format: FormatOption = "table",
) -> None:
    """Jobs, newest first.

    Example: `rlhf job list --state running --state queued`
    """
    states = [_state(text) for text in state or []]
    found = run(context, lambda client: collect(client.training_jobs.list(states=states, limit=limit)))
    output.show_list(found, job_views.JOBS, output_format, "no jobs; start one with `rlhf train`")


@app.command()
def show(context: typer.Context, job: JobArgument, output_format: FormatOption = "table") -> None:
    """A job: state, error and remedy, warnings, attempts, parameters with their defaults.

    Example: `rlhf job show grpo-k3x9qa`
    """
    found = run(context, lambda client: client.training_jobs.get(references.job(client.project, job)))
    output.show_one(found, job_views.facts(found), output_format)


@app.command()
def watch(context: typer.Context, job: JobArgument, output_format: FormatOption = "table") -> None:
    """Follow a job until it ends. Exits with 1 when it failed or was cancelled.

    Ctrl-C stops the watching, never the job. A connection that breaks is made again and nothing is missed.

    Example: `rlhf job watch grpo-k3x9qa`
    """
    from services.cli import watching

    found = run(context, lambda client: client.training_jobs.get(references.job(client.project, job)))
    watching.watch_until_end(context, found.name, output_format)


@app.command()
def replay(
    context: typer.Context,
    job: JobArgument,
    name: Annotated[str, typer.Option(help="What to call the new job; made up when empty.")] = "",
    watch_it: Annotated[bool, typer.Option("--watch", help="Follow it until it ends.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, start nothing.")] = False,
    output_format: FormatOption = "table",
) -> None:
    """Make the same job again: the same weights, rows, parameters and seed. Refused where one of them is gone.

    Example: `rlhf job replay grpo-k3x9qa --watch`, then `rlhf job diff grpo-k3x9qa grpo-7mq2ra`
    """
    from services.cli.commands import train

    made = run(context, lambda client: client.training_jobs.replay(job, name, validate_only=dry_run))
    train.show_created(context, made, watch_it, dry_run, output_format)


@app.command()
def resume(
    context: typer.Context,
    job: Annotated[
        str,
        typer.Argument(metavar="JOB[/step-N]", help="A cancelled or failed one.", autocompletion=completions.jobs),
    ],
    set_: Annotated[list[str] | None, typer.Option("--set", help="steps=200, for example; may be repeated.")] = None,
    name: Annotated[str, typer.Option(help="What to call the new job; made up when empty.")] = "",
    watch_it: Annotated[bool, typer.Option("--watch", help="Follow it until it ends.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, start nothing.")] = False,
    output_format: FormatOption = "table",
) -> None:
    """Make a job that goes on where a cancelled or failed one stopped: weights, optimizer, schedule and rows.

    Only steps, epochs, save_every_steps, checkpoints, validation and held_out_reward may be others.

    Example: `rlhf job resume grpo-k3x9qa --set steps=200 --watch`
    """
    from services.cli import assignments
    from services.cli.commands import train

    params = assignments.parameters(set_ or [], None)
    made = run(context, lambda client: client.training_jobs.resume(job, name, params=params, validate_only=dry_run))
    train.show_created(context, made, watch_it, dry_run, output_format)


@app.command()
def diff(
    context: typer.Context,
    job: JobArgument,
    other: Annotated[str, typer.Argument(metavar="OTHER", help="Another.", autocompletion=completions.jobs)],
    output_format: DocumentOption = "table",
) -> None:
    """What differs between two jobs, in configuration, data and code. Exits with 0 either way.

    Example: `rlhf job diff grpo-k3x9qa grpo-7mq2ra -o json`
    """
    from services.cli import job_diff

    async def command(client: AsyncClient) -> tuple[TrainingJob, TrainingJob]:
        return await client.training_jobs.get(job), await client.training_jobs.get(other)

    job_diff.show(*run(context, command), output_format)


@app.command()
def cancel(context: typer.Context, job: JobArgument, output_format: FormatOption = "table") -> None:
    """Stop a job at its next step, or after the grace period by force. Its checkpoints stay.

    Example: `rlhf job cancel grpo-k3x9qa`
    """
    found = run(context, lambda client: client.training_jobs.cancel(references.job(client.project, job)))
    output.show_row(found, job_views.JOBS, output_format)


@app.command()
def delete(context: typer.Context, job: JobArgument, force: ForceOption = False, yes: YesOption = False) -> None:
    """Delete a job that has ended, with its checkpoints, metrics, logs and samples.

    Refused while a job that has not ended or an adapter uses one of its checkpoints.

    Example: `rlhf job delete grpo-k3x9qa`
    """
    confirm(f"Delete {job} with its checkpoints, metrics, logs and samples?", yes)
    run(context, lambda client: client.training_jobs.delete(references.job(client.project, job), force=force))
    output.say(f"deleted {job}")


@app.command()
def logs(
    context: typer.Context,
    job: JobArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
    tail: Annotated[int, typer.Option(help="Only the last N lines; 0 shows all.", min=0)] = 0,
    output_format: Annotated[Literal["text", "json"], typer.Option("--output", "-o", help="json: one line each.")] = (
        "text"
    ),
) -> None:
    """What the job's processes printed.

    Example: `rlhf job logs grpo-k3x9qa --tail 50 --follow`
    """

    async def command(client: AsyncClient) -> None:
        await _logs(client, references.job(client.project, job), follow, tail, output_format)

    try:
        run(context, command)
    except KeyboardInterrupt:
        raise typer.Exit(exit_codes.INTERRUPTED) from None


@app.command()
def samples(
    context: typer.Context,
    job: JobArgument,
    step: Annotated[int | None, typer.Option(help="Only of this step.", min=0)] = None,
    split: Annotated[str, typer.Option(help="`validation` or `rollout`; empty shows both.")] = "",
    limit: Annotated[int, typer.Option(help="At most so many; 0 shows all.", min=0)] = 20,
    output_format: DocumentOption = "table",
) -> None:
    """What the model answered, and what each answer was worth.

    Example: `rlhf job samples grpo-k3x9qa --split validation --step 100`
    """

    async def command(client: AsyncClient) -> list[Sample]:
        name = references.job(client.project, job)
        return await collect(client.training_jobs.samples(name, step=step, split=split, limit=limit))

    found = run(context, command)
    columns = job_views.samples_table(found, _SAMPLE_WIDTH)
    output.show_list(found, columns, output_format, f"{job} has no such samples yet")


@app.command()
def metrics(
    context: typer.Context,
    job: JobArgument,
    metric: Annotated[list[str] | None, typer.Option(help="Only these, such as `reward/*`; may be repeated.")] = None,
    all_attempts: Annotated[
        bool, typer.Option("--all-attempts", help="Also what a later attempt did again. With csv and json.")
    ] = False,
    output_format: Annotated[
        Literal["table", "csv", "json"], typer.Option("--output", "-o", help="table: one line a series.")
    ] = "table",
) -> None:
    """The numbers that a job reported. In a table those under verl's own names are shown where a pattern asks for them.

    Examples:

    - `rlhf job metrics grpo-k3x9qa --metric 'reward/*' --metric actor/kl`
    - `rlhf job metrics grpo-k3x9qa -o csv > metrics.csv`
    """
    patterns = metric or []
    points = run(context, lambda client: stored_points(client, references.job(client.project, job), patterns))
    if output_format == "table" or not all_attempts:
        points = job_views.effective(points)
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
        found = job_views.series(points)
        shown = {name: series for name, series in found.items() if not (hide_raw and name.startswith("verl/"))}
        output.show(output.table(job_views.SERIES, shown.items()))
        if len(shown) < len(found):
            output.hint(f"and {len(found) - len(shown)} series under verl's own names: --metric 'verl/*'")
    else:
        output.say("no metrics yet" if hide_raw else "no metrics of these names: without --metric all are shown")


async def stored_points(client: AsyncClient, job: str, patterns: list[str]) -> list[MetricPoint]:
    """The points so far whose metric fits one of the patterns (all, without one)."""
    points = client.training_jobs.metrics(job, follow=False)
    return [point async for point in points if _fits(point.metric, patterns)]


async def _logs(client: AsyncClient, job: str, follow: bool, tail: int, output_format: str) -> None:
    """The stored lines, of them the last `tail`; then, to follow, the lines after those."""
    cursor = 0
    if tail:
        kept: collections.deque[LogLine] = collections.deque(maxlen=tail)
        async for line in client.training_jobs.logs(job, follow=False):
            kept.append(line)
        _print_lines(kept, output_format)
        cursor = kept[-1].ordinal if kept else 0
    if follow or not tail:
        async for line in client.training_jobs.logs(job, after_ordinal=cursor, follow=follow):
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


def _state(text: str) -> JobState.ValueType:
    """The number of a state by its word. Raises InvalidArgument."""
    from rlhf.type.v1.job_state_pb2 import JobState

    name = f"JOB_STATE_{text.upper()}"
    if name not in (known := list(JobState.keys())[1:]):  # the first is UNSPECIFIED
        words = ", ".join(key.removeprefix("JOB_STATE_").lower() for key in known)
        raise InvalidArgument.of("--state", f"{text!r} is none; one of {words}")
    return JobState.Value(name)
