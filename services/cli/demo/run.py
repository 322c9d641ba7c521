"""`rlhf demo`: the whole path, from a generated file to a model that is better than before, and how sure that is."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from services.cli import display, exit_codes, output
from services.cli.session import Options, options_of, with_client
from services.mesh.errors import PlatformError

if TYPE_CHECKING:
    from services.client import AsyncClient


def register(app: typer.Typer) -> None:
    app.command()(demo)


def demo(
    context: typer.Context,
    model: Annotated[
        Literal["digits", "smollm2"],
        typer.Option(help="digits: a small model from scratch; smollm2: LoRA on SmolLM2-135M-Instruct."),
    ] = "digits",
    short: Annotated[bool, typer.Option("--short", help="Few steps, for tests: shows that it runs, no gain.")] = False,
    seed: Annotated[int, typer.Option(help="Of the problems and of the weights.", min=0)] = 0,
    compare: Annotated[
        bool, typer.Option("--compare", help="Also go on with SFT for the time that GRPO took, and compare.")
    ] = False,
    down: Annotated[bool, typer.Option("--down", help="Take the mesh down afterwards.")] = False,
) -> None:
    """Train a small model from scratch with SFT and then GRPO, and measure on problems that it has never seen.

    The task is to sort the digits of a number. Everything goes through the same calls that every command makes:
    three generated files are uploaded, a model is made, two jobs train it on verl and Ray. The exit code is 1 unless
    GRPO's gain over SFT is beyond the 95% intervals of both.

    Examples:

    - `rlhf demo`
    - `rlhf demo --seed 1 --compare`
    - `rlhf demo --model smollm2`
    """
    started = time.monotonic()
    options = options_of(context)
    ensure_up(options)
    try:
        succeeded = asyncio.run(
            with_client(options, lambda client: _run(client, options.home, model, seed, short, compare))
        )
        output.say(f"all of it took {display.duration(time.monotonic() - started)}")
    finally:
        if down:
            _rlhf("down")
        else:
            output.hint("the mesh stays up, for you to look around; `rlhf down` stops it, and what was made stays")
    if not succeeded:
        raise typer.Exit(exit_codes.FAILED)


async def _run(client: AsyncClient, home: Path, model: str, seed: int, short: bool, compare: bool) -> bool:
    from services.cli.demo import chat, digits
    from services.cli.demo.settings import FULL, SHORT

    if model == "smollm2":
        return await chat.run(client, home, seed, short)
    return await digits.Digits(client, home, SHORT if short else FULL, seed).run(compare)


def ensure_up(options: Options) -> None:
    """Bring the mesh up where it is not. Raises typer.Exit where that fails."""

    async def ask(client: AsyncClient) -> None:
        await client.algorithms.list()

    try:
        asyncio.run(with_client(options, ask))
        return
    except PlatformError as error:
        if error.code != "UNAVAILABLE" or options.server:
            raise
    code = _rlhf("up")
    if code != exit_codes.OK:
        raise typer.Exit(code)


def _rlhf(command: str) -> int:
    """Run one of our own commands, its output shown; its exit code."""
    return subprocess.run([sys.executable, "-P", "-m", "services.cli", command], check=False).returncode  # noqa: S603
