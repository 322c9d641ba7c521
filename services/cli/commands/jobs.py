"""`rlhf job`: training jobs, from queued to ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from services.cli import completions
from services.cli.jobkit import commands
from services.cli.output import DocumentOption, FormatOption
from services.cli.session import run
from services.cli.training_jobs import TRAINING_JOBS

if TYPE_CHECKING:
    from rlhf.trainer.v1.training_job_pb2 import TrainingJob

    from services.client import AsyncClient

app = typer.Typer(help="Training jobs, from queued to ended.", no_args_is_help=True)
commands.add(app, TRAINING_JOBS)

JobArgument = Annotated[
    str, typer.Argument(metavar="JOB", help="Such as `grpo-k3x9qa`.", autocompletion=completions.jobs)
]


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
