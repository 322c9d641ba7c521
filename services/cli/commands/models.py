"""`rlhf model`: models that jobs start from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli import assignments, completions, display, exit_codes, output
from services.cli.confirming import ForceOption, YesOption, confirm
from services.cli.output import Column, FormatOption
from services.cli.session import collect, run
from services.client import references
from services.mesh.errors import InvalidArgument, Violation

if TYPE_CHECKING:
    from rlhf.trainer.v1.model_pb2 import Model, ModelSource

    from services.client import AsyncClient

app = typer.Typer(help="Models that jobs start from.", no_args_is_help=True)

ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="Its name, such as `tiny`.", autocompletion=completions.models)
]
TokenizerOption = Annotated[
    str, typer.Option(help="With --init: take the tokenizer of this model.", autocompletion=completions.models)
]
CheckpointOption = Annotated[
    str,
    typer.Option(
        metavar="JOB[/step-N]",
        help="A checkpoint; an adapter is merged into what it lies over.",
        autocompletion=completions.jobs,
    ),
]


@app.command("import")
def import_model(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call it: letters a-z, digits and hyphens.")],
    source: Annotated[str, typer.Option(help="`hf:organisation/name`, or a folder on the server.")] = "",
    init: Annotated[
        Path | None, typer.Option(help="From scratch: a transformers config (JSON) with its model_type.")
    ] = None,
    characters: Annotated[str, typer.Option(help="With --init: one token for each of these characters.")] = "",
    checkpoint: CheckpointOption = "",
    tokenizer: TokenizerOption = "",
    seed: Annotated[int, typer.Option(help="With --init: of the random weights.")] = 0,
    label: Annotated[list[str] | None, typer.Option(help="key=value; may be given again.")] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is ready.")] = True,
    output_format: FormatOption = "table",
) -> None:
    """Register a model: it is copied or made, hashed and loaded. Exits with 1 when that fails.

    Examples:

    - `rlhf model import qwen --source hf:Qwen/Qwen2.5-0.5B-Instruct`
    - `rlhf model import smol --source /srv/models/SmolLM2-135M-Instruct`
    - `rlhf model import polite --checkpoint sft-k3x9qa/step-100`
    - `rlhf model import tiny --init config.json --characters "0123456789= " --seed 1`
    """
    labels = assignments.labels(label or [])

    async def command(client: AsyncClient) -> Model:
        described = build_source(source, init, checkpoint, characters, tokenizer, seed, client.project)
        if described.checkpoint:
            # Without a step it is the job's last one that is ready.
            described.checkpoint = (await client.checkpoints.get(checkpoint)).name
        return await importing(client, name, described, labels, wait)

    model = run(context, command)
    output.show_one(model, facts(model), output_format)
    if failed(model):
        raise typer.Exit(exit_codes.FAILED)


@app.command("list")
def list_models(
    context: typer.Context,
    limit: Annotated[int, typer.Option(help="At most so many; 0 shows all.", min=0)] = 50,
    output_format: FormatOption = "table",
) -> None:
    """Models, newest first. A job's checkpoints are models too: `rlhf checkpoint list JOB`.

    Example: `rlhf model list -o name`
    """
    columns = [
        Column("MODEL", lambda model: references.short(model.name), whole=True),
        Column("STATE", _state),
        Column("ARCHITECTURE", lambda model: model.architecture),
        Column("WEIGHTS", lambda model: display.parameters(model.parameter_count), right=True),
        Column("CONTEXT", lambda model: str(model.context_length or ""), right=True),
        Column("SIZE", lambda model: display.size(model.size_bytes), right=True),
        Column("CREATED", lambda model: display.age(model.create_time)),
    ]
    found = run(context, lambda client: collect(client.models.list(limit=limit)))
    output.show_list(found, columns, output_format, "no models; make one with `rlhf model import`")


@app.command("show")
def show_model(context: typer.Context, model: ModelArgument, output_format: FormatOption = "table") -> None:
    """A model: where it comes from, its sizes, its files.

    Example: `rlhf model show tiny`
    """
    found = run(context, lambda client: client.models.get(references.model(client.project, model)))
    output.show_one(found, facts(found), output_format)


@app.command("download")
def download_model(
    context: typer.Context,
    model: ModelArgument,
    to: Annotated[Path, typer.Option(help="The folder; made when it is not there.")],
    force: Annotated[bool, typer.Option("--force", help="Replace other files of the same names.")] = False,
) -> None:
    """Fetch a model as a Hugging Face folder; every file is verified, a download that broke off goes on.

    Example: `rlhf model download polite --to my-model`
    """
    from services.cli import downloading

    async def command(client: AsyncClient) -> Model:
        name = references.model(client.project, model)
        with downloading.shown() as on_progress:
            return await client.models.download(name, to, overwrite=force, on_progress=on_progress)

    found = run(context, command)
    files, size = len(found.files), display.size(found.size_bytes)
    output.say(f"{references.short(found.name)} is in {to}: {files} files, {size}, every SHA-256 as it should be")
    scores = found.kind == found.KIND_REWARD_MODEL
    auto = "AutoModelForSequenceClassification" if scores else "AutoModelForCausalLM"
    output.hint(f'a Hugging Face folder: transformers.{auto}.from_pretrained("{to}")')


@app.command("delete")
def delete_model(
    context: typer.Context, model: ModelArgument, force: ForceOption = False, yes: YesOption = False
) -> None:
    """Delete a model. Refused while a job that has not ended or an adapter uses it.

    Examples:

    - `rlhf model delete tiny`
    - `rlhf model delete tiny --yes`
    """
    confirm(f"Delete {model}?", yes)
    run(context, lambda client: client.models.delete(references.model(client.project, model), force=force))
    output.say(f"deleted {model}")


def build_source(
    source: str, init: Path | None, checkpoint: str, characters: str, tokenizer: str, seed: int, project: str
) -> ModelSource:
    """The source that the options describe. Raises InvalidArgument where they contradict each other."""
    from rlhf.trainer.v1.model_pb2 import CharacterTokenizer, ModelInit, ModelSource

    violations: list[Violation] = []
    if bool(source) + (init is not None) + bool(checkpoint) != 1:
        violations.append(Violation("--source", "give one of --source, --init and --checkpoint"))
    if init is not None and bool(characters) == bool(tokenizer):
        violations.append(Violation("--init", "wants either --characters or --tokenizer"))
    if init is None and (characters or tokenizer or seed):
        violations.append(Violation("--init", "--characters, --tokenizer and --seed belong to --init"))
    if violations:
        raise InvalidArgument(violations)
    if checkpoint:
        return ModelSource(checkpoint=checkpoint)
    if init is None:
        return ModelSource(hub=source) if source.startswith("hf:") else ModelSource(path=_absolute(source))
    made = ModelInit(seed=seed)
    made.config.update(assignments.read_file(init))
    if characters:
        made.characters.CopyFrom(CharacterTokenizer(alphabet=characters))
    else:
        made.tokenizer_model = references.model(project, tokenizer, "--tokenizer")
    return ModelSource(init=made)


def _absolute(path: str) -> str:
    """Of a folder here; the server, whose folder it has to be, says what is wrong with any other."""
    return str(Path(path).expanduser().absolute()) if Path(path).expanduser().exists() else path


async def importing(client: AsyncClient, name: str, source: ModelSource, labels: dict[str, str], wait: bool) -> Model:
    """Import, and where asked to wait, follow until READY or FAILED."""
    model = await client.models.import_model(references.model(client.project, name), source, labels=labels)
    if not wait:
        return model
    with output.messages().status(f"importing {name}"):
        return await client.models.wait(model.name)


def failed(model: Model) -> bool:
    return _state(model) == "FAILED"


def facts(model: Model) -> list[tuple[str, str]]:
    files = "\n".join(f"{file.path}  {display.size(file.size_bytes)}" for file in model.files)
    return [
        ("model", references.short(model.name)),
        ("state", _state(model)),
        ("error", model.error.message),
        ("source", _source(model)),
        ("made from", ", ".join(references.short(parent) for parent in model.parents)),
        ("architecture", model.architecture),
        ("weights", f"{model.parameter_count:,}" if model.parameter_count else ""),
        ("context", f"{model.context_length} tokens" if model.context_length else ""),
        ("vocabulary", f"{model.vocabulary_size} tokens" if model.vocabulary_size else ""),
        ("size", display.size(model.size_bytes) if model.size_bytes else ""),
        ("labels", display.labels(dict(model.labels))),
        ("created", display.moment(model.create_time)),
        ("manifest", model.manifest_sha256),
        ("files", files),
    ]


def _source(model: Model) -> str:
    source = model.source
    if source.WhichOneof("source") == "checkpoint":
        merged = ", merged" if len(model.parents) > 1 else ""
        return f"checkpoint {references.short(source.checkpoint)}{merged}"
    if source.WhichOneof("source") != "init":
        return source.hub or source.path
    tokenizer = source.init.tokenizer_model or f"characters {source.init.characters.alphabet!r}"
    return f"from scratch, seed {source.init.seed}, {tokenizer}"


def _state(model: Model) -> str:
    from rlhf.trainer.v1.model_pb2 import Model as Kind

    return Kind.State.Name(model.state).removeprefix("STATE_")
