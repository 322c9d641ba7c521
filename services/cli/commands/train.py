"""`rlhf train ALGORITHM`: one command for each algorithm of the mesh, its parameters drawn from their schema."""

from __future__ import annotations

import asyncio
import copy
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from services.cli import assignments, completions, display, output, training_views
from services.cli.commands import registries
from services.cli.output import FormatOption
from services.cli.session import Options, options_of, run, with_client
from services.cli.training_jobs import TRAINING_JOBS
from services.client import references
from services.mesh.errors import PlatformError

if TYPE_CHECKING:
    from rlhf.trainer.v1.training_job_pb2 import Algorithm, TrainingJob

    from services.client import AsyncClient

_TEMPLATE = "ALGORITHM"
_PATIENCE_SECONDS = 5.0
# What an example calls a dataset, by its format.
_DATASETS = {"messages": "examples", "prompt": "questions", "preference": "comparisons"}


class AlgorithmGroup(TyperGroup):
    """Its commands are the algorithms of the mesh; each is the template below, with the algorithm's own help."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [algorithm.entry.id for algorithm in _registry(options_of(ctx)).algorithms]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        command = copy.copy(super().get_command(ctx, _TEMPLATE))
        if command is None or cmd_name.startswith("-"):
            return None
        command.name, command.hidden = cmd_name, False
        # A job is created without asking for the registry first: the mesh names what there is where the name is wrong.
        if not ctx.invoked_subcommand:
            command.short_help = _registry(options_of(ctx)).summary(cmd_name)
        return command

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)
        if problem := _registry(options_of(ctx)).problem:
            output.hint(problem)


class AlgorithmCommand(TyperCommand):
    """Shows what the algorithm is above its options and its parameters under them."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        registry = _registry(options_of(ctx))
        found = [item for item in registry.algorithms if item.entry.id == ctx.info_name]
        if found:
            entry = found[0].entry
            self.help = f"{entry.description or entry.summary}\n\n{_example(found[0], str(self.help))}"
        super().format_help(ctx, formatter)
        if found:
            output.show(registries.parameter_table(found[0].entry.params_schema))
            output.hint(f"settings of verl besides: rlhf algorithm overrides {ctx.info_name}")
        else:
            output.hint(registry.problem or f"the mesh has no algorithm {ctx.info_name!r}")


def _example(algorithm: Algorithm, text: str) -> str:
    """The template's examples, of this algorithm and a dataset of a format that it takes."""
    dataset = next((_DATASETS[kind] for kind in algorithm.dataset_formats if kind in _DATASETS), "data")
    return text.replace(_TEMPLATE, algorithm.entry.id).replace("DATASET", dataset)


app = typer.Typer(
    cls=AlgorithmGroup,
    no_args_is_help=True,
    help="""Train a model. The algorithms and their parameters come from the mesh: `rlhf train grpo --help`.

    `sft` takes good answers; `dpo` and `reward_model` take pairs of a better and a worse one; all others take prompts
    and a reward, `grpo` first.""",
)


ModelOption = Annotated[
    str,
    typer.Option(
        help="A model, or a checkpoint: `job/step-100`, or `job` for its last.", autocompletion=completions.models
    ),
]
DatasetOption = Annotated[
    str, typer.Option(help="`digits` (newest version) or `digits:3`.", autocompletion=completions.datasets)
]
ValidationOption = Annotated[
    str, typer.Option(help="Held out; measured at step 0 and checkpoints.", autocompletion=completions.datasets)
]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="key=value, nested by dots; may be repeated.")]
SetFileOption = Annotated[Path | None, typer.Option(help="Parameters from a .json or .toml file; --set wins.")]
NameOption = Annotated[str, typer.Option(help="What to call the job; made up when empty.")]
PriorityOption = Annotated[int, typer.Option(help="Higher goes first.", min=-100, max=100)]
LabelOption = Annotated[list[str] | None, typer.Option(help="key=value; may be repeated.")]
GpusOption = Annotated[int, typer.Option(help="GPUs, or slots on a CPU machine; 0 is the default.", min=0)]
WatchOption = Annotated[bool, typer.Option("--watch", help="Follow it until it ends.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Check everything, start nothing.")]


@app.command(_TEMPLATE, cls=AlgorithmCommand, hidden=True)
def train(
    context: typer.Context,
    model: ModelOption,
    dataset: DatasetOption,
    validation: ValidationOption = "",
    set_: SetOption = None,
    set_file: SetFileOption = None,
    name: NameOption = "",
    priority: PriorityOption = 0,
    label: LabelOption = None,
    gpus: GpusOption = 0,
    watch: WatchOption = False,
    dry_run: DryRunOption = False,
    output_format: FormatOption = "table",
) -> None:
    """Everything is checked before anything starts, and every problem is told at once.

    Examples:

    - `rlhf train ALGORITHM --model base --dataset DATASET --validation held-out --watch`
    - `rlhf train ALGORITHM --model JOB --dataset DATASET --set learning_rate=1e-5 --set lora.rank=16`
    - `rlhf train ALGORITHM --model JOB/step-100 --dataset DATASET:2 --set-file params.toml --dry-run`
    """
    params, labels = assignments.parameters(set_ or [], set_file), assignments.labels(label or [])

    async def command(client: AsyncClient) -> TrainingJob:
        return await client.training_jobs.create(
            str(context.info_name),
            model=model,
            dataset=dataset,
            validation=validation,
            params=params,
            name=name,
            priority=priority,
            gpus=gpus,
            labels=labels,
            validate_only=dry_run,
        )

    show_created(context, run(context, command), watch, dry_run, output_format)


def show_created(context: typer.Context, job: TrainingJob, watch: bool, dry_run: bool, output_format: str) -> None:
    """What was created, or would have been; or the job until it ends."""
    # Who watches is told of them with all that come.
    for warning in () if watch and not dry_run else job.warnings:
        output.say(f"warning: {display.clean(warning.message)}", style="yellow")
        if warning.remedy:
            output.say(f"  what to do: {display.clean(warning.remedy)}")
    if dry_run:
        verdict = (
            f"it can be started, with warnings ({len(job.warnings)})" if job.warnings else "nothing is wrong with it"
        )
        output.say(f"{verdict}; nothing was started")
        output.show_one(job, training_views.facts(job), output_format)
    elif watch:
        from services.cli.jobkit import watching

        watching.watch_until_end(context, TRAINING_JOBS, job.name, output_format)
    else:
        output.show_row(job, training_views.JOBS, output_format)
        for title, text in training_views.data_facts(job):
            if text:
                output.say(f"{title}: {text}")
        output.hint(f"follow it: rlhf job watch {references.short(job.name)}")


async def describe(
    client: AsyncClient, algorithm: str, model: str, dataset: str, validation: str, params: dict[str, Any]
) -> TrainingJob:
    """The job that short names and parameters describe. Raises InvalidArgument, NotFound."""
    version = references.dataset_version(client.project, dataset, "--dataset")
    held_out = references.dataset_version(client.project, validation, "--validation") if validation else ""
    return await client.training_jobs.describe(algorithm, model, version, held_out, params)


@dataclass(frozen=True)
class _Registry:
    """The algorithms of the mesh, or why they are not known."""

    algorithms: tuple[Algorithm, ...]
    problem: str = ""

    def summary(self, algorithm_id: str) -> str:
        return next((item.entry.summary for item in self.algorithms if item.entry.id == algorithm_id), "")


@functools.cache
def _registry(options: Options) -> _Registry:
    """Asked once, though a help page needs it several times."""

    async def command() -> _Registry:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            return _Registry(tuple(await with_client(options, lambda client: client.algorithms.list())))

    try:
        return asyncio.run(command())
    except (PlatformError, TimeoutError) as error:
        return _Registry((), f"the algorithms and their parameters come from the mesh: {error or 'no answer'}")
