"""`rlhf recipe`: presets for common tasks."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.cli import assignments, output, recipe_files, training_views
from services.cli.commands import train
from services.cli.output import Column, DocumentOption, FormatOption
from services.cli.recipe_files import Recipe
from services.cli.session import run
from services.mesh.errors import InvalidArgument, Violation

if TYPE_CHECKING:
    from rlhf.trainer.v1.training_job_pb2 import TrainingJob

    from services.client import AsyncClient

app = typer.Typer(help="Presets for common tasks, tested with this release.", no_args_is_help=True)

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="Such as `sft-lora`.", autocompletion=recipe_files.names)
]


@app.command("list")
def list_recipes(output_format: FormatOption = "table") -> None:
    """Every recipe.

    Example: `rlhf recipe list`
    """
    found = [recipe_files.read(name) for name in recipe_files.names()]
    if output_format == "json":
        output.write_json([asdict(recipe) for recipe in found])
    elif output_format == "name":
        output.show("\n".join(recipe.name for recipe in found))
    else:
        columns = [
            Column("RECIPE", lambda item: item.name, whole=True),
            Column("VERSION", lambda item: str(item.version), right=True),
            Column("ALGORITHM", lambda item: item.algorithm, whole=True),
            Column("SUMMARY", lambda item: item.summary),
        ]
        output.show(output.table(columns, found))


@app.command()
def show(recipe: RecipeArgument, output_format: DocumentOption = "table") -> None:
    """A recipe: when to use it, and the parameters that it sets.

    Example: `rlhf recipe show grpo-math`
    """
    found = recipe_files.read(recipe)
    if output_format == "json":
        output.write_json(asdict(found))
        return
    facts = [
        ("recipe", f"{found.name}, version {found.version}"),
        ("algorithm", found.algorithm),
        ("what", found.summary),
        ("when", output.paragraphs(found.when)),
        ("validation", "needed" if found.needs_validation else "if you have some"),
        ("must be given", "\n".join(f"--set {path}=…  {what}" for path, what in found.needs.items())),
        ("params", "\n".join(training_views.param_lines(found.params))),
    ]
    output.show(output.grid(facts))
    needed = "".join(f" --set {path}=…" for path in found.needs)
    output.hint(f"rlhf recipe run {found.name} --model MODEL --dataset DATASET{needed}")


@app.command("run")
def run_recipe(
    context: typer.Context,
    recipe: RecipeArgument,
    model: train.ModelOption,
    dataset: train.DatasetOption,
    validation: train.ValidationOption = "",
    set_: train.SetOption = None,
    set_file: train.SetFileOption = None,
    name: train.NameOption = "",
    priority: train.PriorityOption = 0,
    label: train.LabelOption = None,
    gpus: train.GpusOption = 0,
    watch: train.WatchOption = False,
    dry_run: train.DryRunOption = False,
    output_format: FormatOption = "table",
) -> None:
    """Train as a recipe says; --set and --set-file change single parameters of it.

    Examples:

    - `rlhf recipe run sft-lora --model base --dataset examples --watch`
    - `rlhf recipe run grpo-math --model base --dataset questions --validation held-out --set steps=200`
    """
    found = recipe_files.read(recipe)
    params = recipe_files.merged(found.params, assignments.parameters(set_ or [], set_file))
    if wrong := _missing(found, params, validation):
        raise InvalidArgument(wrong)
    labels = {**_labels(found), **assignments.labels(label or [])}
    read: dict[str, Any] = {"model": model, "dataset": dataset, "validation": validation, "params": params}
    about: dict[str, Any] = {"name": name, "priority": priority, "gpus": gpus, "labels": labels}

    async def command(client: AsyncClient) -> TrainingJob:
        return await client.training_jobs.create(found.algorithm, **read, **about, validate_only=dry_run)

    train.show_created(context, run(context, command), watch, dry_run, output_format)


def _missing(found: Recipe, params: dict[str, Any], validation: str) -> list[Violation]:
    """What the recipe cannot do without."""
    wanted = [Violation(f"params.{path}", f"must be given: {what}") for path, what in found.missing(params).items()]
    if found.needs_validation and not validation:
        message = f"{found.name} chooses by held-out rows; name a dataset of such"
        wanted.insert(0, Violation("--validation", message))
    return wanted


def _labels(found: Recipe) -> dict[str, str]:
    return {recipe_files.LABEL: found.name, recipe_files.VERSION_LABEL: str(found.version)}
