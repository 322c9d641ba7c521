"""docs/training.md shows every algorithm at work; tests/integration/client/test_training_docs.py runs its commands."""

from __future__ import annotations

from pathlib import Path

from services.trainer.algorithms import algorithms

PAGE = Path(__file__).parents[3] / "docs" / "training.md"
COMMANDS = [
    line for line in PAGE.read_text("utf-8").replace("\\\n", " ").splitlines() if line.startswith("rlhf train ")
]


def test_every_algorithm_has_a_command() -> None:
    assert {line.split()[2] for line in COMMANDS} == set(algorithms.names())
