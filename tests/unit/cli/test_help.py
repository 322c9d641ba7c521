from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import typer.main

from services.cli import exit_codes
from services.cli.__main__ import app

# Of the mesh itself: they take next to nothing.
_WITHOUT = {"up", "down", "status", "doctor"}


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Every command with its help; the algorithms' commands are one template."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        elif name not in _WITHOUT:
            yield " ".join((*path, name)), command.help or ""


@pytest.mark.parametrize(("command", "text"), list(commands(typer.main.get_command(app))))
def test_every_command_is_shown_by_an_example_of_its_own(command: str, text: str) -> None:
    words = command.replace("ALGORITHM", "").split()
    assert any(line.split()[: 1 + len(words)] == ["rlhf", *words] for line in text.replace("`", "\n").splitlines())


def test_the_exit_codes_are_documented() -> None:
    text = str(typer.main.get_command(app).epilog)
    for code, meaning in exit_codes.MEANINGS:
        assert f"**{code}** {meaning}" in text
