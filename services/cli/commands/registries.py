"""`rlhf algorithm` and `rlhf reward`: what there is to train with, drawn from the registries of the mesh."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.cli import output, schemas
from services.cli.output import Column, DocumentOption
from services.cli.session import run

if TYPE_CHECKING:
    from rich.console import RenderableType

OVERRIDES = "verl_overrides"

algorithm_app = typer.Typer(help="What a model can be trained with.", no_args_is_help=True)
reward_app = typer.Typer(help="What an answer can be scored with.", no_args_is_help=True)


@algorithm_app.command("list")
def list_algorithms(context: typer.Context, output_format: DocumentOption = "table") -> None:
    """Every algorithm, and the dataset formats that it takes.

    Example: `rlhf algorithm list`
    """
    found = run(context, lambda client: client.algorithms.list())
    columns = [
        Column("ALGORITHM", lambda item: item.entry.id, whole=True),
        Column("DATASETS", lambda item: ", ".join(item.dataset_formats)),
        Column("SUMMARY", lambda item: item.entry.summary),
    ]
    output.show_list(found, columns, output_format, "no algorithms")


@algorithm_app.command("show")
def show_algorithm(
    context: typer.Context,
    algorithm: Annotated[str, typer.Argument(help="Such as grpo.")],
    output_format: DocumentOption = "table",
) -> None:
    """An algorithm: formula, source, when not to use it, and every parameter.

    Example: `rlhf algorithm show grpo`
    """
    found = run(context, lambda client: client.algorithms.get(algorithm))
    hint = f"set with: rlhf train {algorithm} --set PARAMETER=VALUE"
    _show(found, output_format, f"{hint}\nsettings of verl besides: rlhf algorithm overrides {algorithm}")


@algorithm_app.command("overrides")
def list_overrides(
    context: typer.Context,
    algorithm: Annotated[str, typer.Argument(help="Such as grpo.")],
    output_format: DocumentOption = "table",
) -> None:
    """What a job may set of verl besides its parameters (`verl_overrides`), with type and default.

    JSON is an object of JSON Schemas by name.

    Example: `rlhf algorithm overrides grpo`
    """
    from google.protobuf.json_format import MessageToDict

    found = run(context, lambda client: client.algorithms.get(algorithm))
    settings = schemas.collection(MessageToDict(found.entry.params_schema), OVERRIDES)
    if output_format == "json":
        output.write_json(settings)
        return
    columns = [
        Column("SETTING OF VERL", lambda item: item.path, whole=True),
        Column("DEFAULT", lambda item: item.default),
        Column("TYPE", lambda item: item.type),
        Column("NOTE", lambda item: item.description),
    ]
    output.show(output.table(columns, sorted(schemas.parameters({"properties": settings}), key=lambda one: one.path)))
    output.hint(f"set with: rlhf train {algorithm} --set {OVERRIDES}.SETTING=VALUE")


@reward_app.command("list")
def list_rewards(context: typer.Context, output_format: DocumentOption = "table") -> None:
    """Every reward.

    Example: `rlhf reward list`
    """
    found = run(context, lambda client: client.rewards.list())
    columns = [
        Column("REWARD", lambda item: item.entry.id, whole=True),
        Column("SUMMARY", lambda item: item.entry.summary),
    ]
    output.show_list(found, columns, output_format, "no rewards")


@reward_app.command("show")
def show_reward(
    context: typer.Context,
    reward: Annotated[str, typer.Argument(help="Such as exact.")],
    output_format: DocumentOption = "table",
) -> None:
    """A reward: what it scores, its parts, and every parameter.

    Example: `rlhf reward show numeric`
    """
    found = run(context, lambda client: client.rewards.get(reward))
    hint = f"set with: --set reward.name={reward} --set reward.params.PARAMETER=VALUE"
    _show(found, output_format, hint)


def parameter_table(params_schema: Any) -> RenderableType:
    """The parameters of an algorithm or reward, from its schema as a protobuf Struct."""
    from google.protobuf.json_format import MessageToDict

    columns = [
        Column("PARAMETER", lambda item: item.path, whole=True),
        Column("DEFAULT", lambda item: item.default),
        Column("TYPE AND RANGE", lambda item: ", ".join(part for part in (item.type, item.range) if part)),
        Column("WHAT IT IS", lambda item: item.description),
    ]
    return output.table(columns, schemas.parameters(MessageToDict(params_schema)))


def _show(item: Any, output_format: str, hint: str) -> None:
    if output_format == "json":
        output.write_json(output.as_json(item))
        return
    output.show(output.paragraphs(item.entry.description or item.entry.summary))
    output.show()
    output.show(parameter_table(item.entry.params_schema))
    output.hint(hint)
