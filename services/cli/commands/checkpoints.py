"""`rlhf checkpoint`: the models that jobs made, in Hugging Face form."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli import completions, display, headline, output
from services.cli.confirming import ForceOption, YesOption, confirm
from services.cli.output import Column, FormatOption
from services.cli.session import collect, run
from services.client import references

if TYPE_CHECKING:
    from rlhf.trainer.v1.training_job_pb2 import HeadlineMetric
    from rlhf.type.v1.checkpoint_pb2 import Checkpoint

    from services.client import AsyncClient

app = typer.Typer(help="The models that jobs made, in Hugging Face form.", no_args_is_help=True)

JobArgument = Annotated[
    str, typer.Argument(metavar="JOB", help="The job that made them.", autocompletion=completions.jobs)
]
CheckpointArgument = Annotated[
    str,
    typer.Argument(
        metavar="JOB[/step-N]", help="`sft-k3x9qa/step-100`; without a step the last.", autocompletion=completions.jobs
    ),
]


@app.command("list")
def list_checkpoints(context: typer.Context, job: JobArgument, output_format: FormatOption = "table") -> None:
    """Checkpoints of a job, the last first, with what its algorithm is validated by.

    Example: `rlhf checkpoint list grpo-k3x9qa`
    """

    async def command(client: AsyncClient) -> tuple[list[Checkpoint], list[HeadlineMetric]]:
        name = references.job(client.project, job)
        found = await collect(client.checkpoints.list(name))
        if output_format != "table" or not any(item.metrics for item in found):
            return found, []
        return found, await headline.of_algorithm(client, (await client.training_jobs.get(name)).algorithm)

    found, shown = run(context, command)
    columns = [
        Column("CHECKPOINT", lambda item: references.short(item.name), whole=True),
        Column("STEP", lambda item: str(item.step), right=True),
        Column("STATE", state),
        Column("KIND", _kind),
        Column("SIZE", lambda item: display.size(item.size_bytes), right=True),
        *(_measured(series) for series in shown if any(series.metric in item.metrics for item in found)),
        Column("CREATED", lambda item: display.age(item.create_time)),
    ]
    output.show_list(found, columns, output_format, f"{job} has no checkpoints yet")


def _measured(series: HeadlineMetric) -> Column:
    def value(item: Checkpoint) -> str:
        return "".join(text for _, text in headline.measured(item, [series]))

    return Column(series.title.upper(), value, right=True)


@app.command()
def show(context: typer.Context, checkpoint: CheckpointArgument, output_format: FormatOption = "table") -> None:
    """A checkpoint: what it was made from, its validation values and its files.

    Example: `rlhf checkpoint show grpo-k3x9qa/step-50`
    """
    found = run(context, lambda client: resolve(client, checkpoint))
    output.show_one(found, _facts(found), output_format)


@app.command()
def download(
    context: typer.Context,
    checkpoint: CheckpointArgument,
    to: Annotated[Path, typer.Option(help="The folder; made when it is not there.")],
    force: Annotated[bool, typer.Option("--force", help="Replace other files of the same names.")] = False,
    allow_corrupt: Annotated[
        bool, typer.Option("--allow-corrupt", help="Take one that could not be confirmed, too, as it is.")
    ] = False,
) -> None:
    """Fetch a checkpoint as a Hugging Face folder; every file is verified, a download that broke off goes on.

    Examples:

    - `rlhf checkpoint download grpo-k3x9qa --to my-model`
    - `rlhf checkpoint download grpo-k3x9qa/step-50 --to my-model`
    """
    from services.cli import downloading

    async def command(client: AsyncClient) -> Checkpoint:
        job, name = references.checkpoint(client.project, checkpoint)
        with downloading.shown() as on_progress:
            return await client.checkpoints.download(
                name or job, to, overwrite=force, allow_corrupt=allow_corrupt, on_progress=on_progress
            )

    found = run(context, command)
    files, size = len(found.files), display.size(found.size_bytes)
    output.say(f"{references.short(found.name)} is in {to}: {files} files, {size}, every SHA-256 as it should be")
    if found.state == found.STATE_CORRUPT:
        output.say(f"it is CORRUPT, and what you have is what was found: {found.state_reason}")
    elif found.kind == found.KIND_ADAPTER:
        base = references.short(found.base_model)
        output.hint(f'a PEFT adapter over {base}: peft.PeftModel.from_pretrained(BASE, "{to}"), BASE being that model')
        short = references.short(found.name)
        output.hint(f"merged: rlhf model import NAME --checkpoint {short}; rlhf model download NAME --to FOLDER")
    elif found.kind == found.KIND_REWARD:
        output.hint(f'a reward model: transformers.AutoModelForSequenceClassification.from_pretrained("{to}")')
    else:
        output.hint(f'a Hugging Face folder: transformers.AutoModelForCausalLM.from_pretrained("{to}")')


@app.command()
def delete(
    context: typer.Context,
    checkpoint: Annotated[
        str, typer.Argument(metavar="JOB/step-N", help="`sft-k3x9qa/step-100`.", autocompletion=completions.jobs)
    ],
    force: ForceOption = False,
    yes: YesOption = False,
) -> None:
    """Delete the files of a checkpoint; what it was stays listed.

    Refused while a job that has not ended or an adapter uses it.

    Examples:

    - `rlhf checkpoint delete grpo-k3x9qa/step-50`
    - `rlhf checkpoint delete grpo-k3x9qa/step-50 --yes`
    """
    confirm(f"Delete the files of {checkpoint}?", yes)
    run(context, lambda client: client.checkpoints.delete(checkpoint, force=force))
    output.say(f"deleted {checkpoint}")


async def resolve(client: AsyncClient, text: str) -> Checkpoint:
    """The checkpoint with its files that `job`, `job/step-N` or a full name means. Raises NotFound."""
    job, name = references.checkpoint(client.project, text)
    return await client.checkpoints.get(name or job)


def state(checkpoint: Checkpoint) -> str:
    from rlhf.type.v1.checkpoint_pb2 import Checkpoint as Type

    return Type.State.Name(checkpoint.state).removeprefix("STATE_")


def _kind(checkpoint: Checkpoint) -> str:
    from rlhf.type.v1.checkpoint_pb2 import Checkpoint as Type

    return Type.Kind.Name(checkpoint.kind).removeprefix("KIND_").lower()


def _training_state(checkpoint: Checkpoint) -> str:
    from rlhf.type.v1.checkpoint_pb2 import Checkpoint as Type

    if checkpoint.training_state == Type.TRAINING_STATE_UNSPECIFIED:
        return ""
    state = Type.TrainingState.Name(checkpoint.training_state).removeprefix("TRAINING_STATE_").lower()
    gone = "no: there are newer ones, or the job has succeeded or ended long ago"
    return {"kept": "yes", "pruned": gone}.get(state, f"no: {state}")


def _provenance(checkpoint: Checkpoint) -> list[tuple[str, str]]:
    made = checkpoint.provenance
    if not made.job:
        return []
    data = [(made.dataset_version, made.dataset_sha256)]
    data.append((made.validation_dataset_version, made.validation_dataset_sha256))
    attempt = f", attempt {made.attempt}" if made.attempt > 1 else ""
    return [
        ("job", f"{references.short(made.job)} ({made.algorithm}, seed {made.seed}{attempt})"),
        ("base weights", f"{references.short(made.base_model)}  {made.base_manifest_sha256[:12]}"),
        ("after", references.short(made.previous_checkpoint) if made.previous_checkpoint else ""),
        ("data", "\n".join(f"{references.short(name)}  {sha256[:12]}" for name, sha256 in data if name)),
        ("reward models", "\n".join(f"{references.short(n)}  {h[:12]}" for n, h in sorted(made.reward_models.items()))),
        ("params", made.params_sha256[:12]),
        ("software", ", ".join(f"{name} {version}" for name, version in sorted(made.software.items()))),
    ]


def _facts(checkpoint: Checkpoint) -> list[tuple[str, str]]:
    metrics = "\n".join(f"{name}  {display.number(value)}" for name, value in sorted(checkpoint.metrics.items()))
    files = "\n".join(f"{file.path}  {display.size(file.size_bytes)}  {file.sha256[:12]}" for file in checkpoint.files)
    return [
        ("checkpoint", references.short(checkpoint.name)),
        ("state", state(checkpoint)),
        ("kind", _kind(checkpoint)),
        ("step", str(checkpoint.step)),
        ("why", checkpoint.state_reason),
        ("resumable", _training_state(checkpoint)),
        ("base model", references.short(checkpoint.base_model) if checkpoint.base_model else ""),
        ("made from", ", ".join(references.short(parent) for parent in checkpoint.parents)),
        ("size", display.size(checkpoint.size_bytes)),
        ("created", display.moment(checkpoint.create_time)),
        ("manifest", checkpoint.manifest_sha256),
        *_provenance(checkpoint),
        ("metrics", metrics),
        ("files", files),
    ]
