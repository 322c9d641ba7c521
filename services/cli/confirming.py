"""Asking before something is gone for good."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from services.mesh.errors import InvalidArgument

YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Although something uses it, which keeps the bytes that it needs.")
]


def confirm(question: str, yes: bool) -> None:
    """Ask on the terminal, unless told `yes`. Raises Abort on a no, InvalidArgument where nobody can be asked."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise InvalidArgument.of("--yes", "must be given where there is no terminal to ask on: nothing was deleted")
    typer.confirm(question, abort=True, err=True)
