"""docs/training.md shows every algorithm at work; tests/integration/client/test_training_docs.py runs its commands."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from services.trainer.algorithms import algorithms

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "training.md"
COMMANDS = [
    line for line in PAGE.read_text("utf-8").replace("\\\n", " ").splitlines() if line.startswith("rlhf train ")
]


REASON = re.compile("[A-Z]+(_[A-Z]+)+")
# Of errors, not of warnings.
OTHERS = {
    *("NO_STEPS", "STEPS_MISSING", "CHECKPOINT_CORRUPT", "STOP_REQUESTED", "REWARD_UNAVAILABLE", "SPOOL_MOVED"),
    "ATTEMPT_ENDED",
}


def reasons() -> Iterator[str]:
    """Of the modules that make warnings."""
    folders = (ROOT / "services" / "trainer", ROOT / "services" / "mesh" / "runs")
    for path in (path for folder in folders for path in folder.rglob("*.py")):
        source = path.read_text("utf-8")
        if re.search(r"\b(Problem|JobWarning)\(", source):
            texts = (node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant))
            yield from (text for text in texts if isinstance(text, str) and REASON.fullmatch(text))


def test_every_reason_of_a_warning_is_in_the_table() -> None:
    rows = [line.split("|")[1] for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| `")]
    told = {reason for cell in rows for reason in re.findall("`([A-Z_]+)`", cell)}
    found = set(reasons())
    assert found >= {"ROWS_CHANGED", "GRADIENT_ZERO", "VALIDATION_SKIPPED"}
    assert found - OTHERS == told


def test_every_algorithm_has_a_command() -> None:
    assert {line.split()[2] for line in COMMANDS} == set(algorithms.names())
