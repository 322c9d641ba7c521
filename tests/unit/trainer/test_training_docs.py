"""The commands of docs/training.md: each names an algorithm, and sets parameters that it takes."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from services.cli.assignments import parameters
from services.mesh.params import parse
from services.trainer.algorithms import algorithms
from tests.unit.trainer.test_algorithms import check

PAGE = Path(__file__).parents[3] / "docs" / "training.md"
COMMANDS = [
    line for line in PAGE.read_text("utf-8").replace("\\\n", " ").splitlines() if line.startswith("rlhf train ")
]


def test_every_algorithm_has_a_command() -> None:
    assert {line.split()[2] for line in COMMANDS} == set(algorithms.names())


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_is_taken(line: str) -> None:
    words = shlex.split(line, comments=True)
    given = parameters([words[at + 1] for at, word in enumerate(words) if word == "--set"])
    assert parse(algorithms.get(words[2]).Params, given)
    assert check(words[2], given, validation_format=None) == {}
