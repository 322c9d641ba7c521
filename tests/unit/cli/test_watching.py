from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from services.cli.jobkit.watching import base_command
from services.cli.session import Options


@pytest.mark.parametrize(
    ("options", "command"),
    [
        (Options(), "rlhf"),
        (Options(project="mine"), "rlhf --project mine"),
        (
            Options(server="mesh.example:443", token_file=Path("/keys/my token"), certificates=Path("ca.pem")),
            "rlhf --server mesh.example:443 --token-file '/keys/my token' --certificates ca.pem",
        ),
    ],
)
def test_the_command_that_goes_on_finds_the_same_mesh(options: Options, command: str) -> None:
    context: Any = SimpleNamespace(find_root=lambda: SimpleNamespace(obj=options))
    assert base_command(context) == command
