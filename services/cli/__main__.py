"""The `rlhf` command. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from services.cli import exit_codes, repeated_options, violations
from services.cli.backup import commands as backup
from services.cli.commands import (
    checkpoints,
    datasets,
    doctor,
    jobs,
    lifecycle,
    models,
    recipes,
    registries,
    rewards,
    token,
    train,
)
from services.cli.demo import run as demo
from services.cli.session import Options
from services.mesh.errors import FailedPrecondition, PlatformError

_EPILOG = "Exit codes: " + "; ".join(f"**{code}** {meaning}" for code, meaning in exit_codes.MEANINGS) + "."

app = typer.Typer(
    name="rlhf",
    cls=repeated_options.CheckedGroup,
    help="""Train language models with SFT and reinforcement learning, on this machine or on a cluster.

    Start here: `rlhf up`, then `rlhf demo`. Every command tells more with `--help`.""",
    epilog=_EPILOG,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        sys.stdout.write(f"rlhf {version('rlhf-mesh')}\n")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    project: Annotated[str, typer.Option(envvar="RLHF_PROJECT", help="The project that names are in.")] = "default",
    server: Annotated[
        str,
        typer.Option(envvar="RLHF_SERVER", metavar="HOST:PORT", help="Another mesh than the one of this home."),
    ] = "",
    token_file: Annotated[
        Path | None, typer.Option(envvar="RLHF_TOKEN_FILE", help="Its token; by default `token` in the home.")
    ] = None,
    certificates: Annotated[
        Path | None, typer.Option(envvar="RLHF_SERVER_CERTIFICATES", help="PEM of its authority; speaks TLS then.")
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    context.obj = Options.read(project, server, token_file, certificates)


lifecycle.register(app)
app.add_typer(token.app, name="token")
backup.register(app)
doctor.register(app)
demo.register(app)
app.add_typer(models.app, name="model")
app.add_typer(datasets.app, name="dataset")
app.add_typer(train.app, name="train")
app.add_typer(recipes.app, name="recipe")
app.add_typer(jobs.app, name="job")
app.add_typer(checkpoints.app, name="checkpoint")
app.add_typer(registries.algorithm_app, name="algorithm")
rewards.register(registries.reward_app)
app.add_typer(registries.reward_app, name="reward")


def main() -> None:
    """Run the command line; the process ends with one of the codes in `exits`."""
    try:
        app(prog_name="rlhf")
    except PlatformError as error:
        violations.show(error)
        sys.exit(exit_codes.code_of(error))
    except OSError as error:
        # Of a file or folder that was named to us; any other is a fault of ours, whose trace is wanted.
        if error.filename is None:
            raise
        violations.show(FailedPrecondition("FILE_UNUSABLE", f"{error.filename}: {error.strerror}"))
        sys.exit(exit_codes.FAILED)
    except KeyboardInterrupt:
        sys.exit(exit_codes.INTERRUPTED)


if __name__ == "__main__":
    main()
