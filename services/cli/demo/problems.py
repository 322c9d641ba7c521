"""The demonstration's task: sort the digits of a number. A person sees at a glance whether an answer is right.

A seed decides everything: which numbers are drawn, and which of them are examples to imitate (SFT), prompts to practise
on (GRPO) and held-out prompts to measure with. No number is in two sets.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Every character of a prompt or an answer, for a tokenizer with one token a character.
ALPHABET = "0123456789"


@dataclass(frozen=True)
class Sizes:
    """How many problems each set has, and how many digits a problem."""

    examples: int
    prompts: int
    held_out: int
    digits: int

    def __post_init__(self) -> None:
        """Raises ValueError where a set would be empty or there are not enough numbers for disjoint sets."""
        if min(self.examples, self.prompts, self.held_out, self.digits) < 1:
            raise ValueError(f"every size must be positive: {self}")
        if self.examples + self.prompts + self.held_out > 10**self.digits:
            raise ValueError(f"there are only {10**self.digits} numbers of {self.digits} digits: {self}")


@dataclass(frozen=True)
class ProblemFiles:
    """The three sets as .jsonl files: `messages` rows in `examples`, `prompt` rows in the others."""

    examples: Path
    prompts: Path
    held_out: Path


def answer(question: str) -> str:
    """The digits of `question` in ascending order."""
    return "".join(sorted(question))


def write(seed: int, sizes: Sizes, folder: Path) -> ProblemFiles:
    """Draw the three sets and write them into `folder`. The same seed and sizes give the same bytes.

    Raises AssertionError where what was written is not disjoint.
    """
    count = sizes.examples + sizes.prompts + sizes.held_out
    # Without replacement: all distinct, so any cut of the list makes disjoint sets.
    numbers = random.Random(seed).sample(range(10**sizes.digits), count)  # noqa: S311 - a demonstration, not a secret
    questions = [f"{number:0{sizes.digits}d}" for number in numbers]
    # Held-out first: it stays the same when the training sets are made larger or smaller.
    held_out = questions[: sizes.held_out]
    examples = questions[sizes.held_out : sizes.held_out + sizes.examples]
    prompts = questions[sizes.held_out + sizes.examples :]

    folder.mkdir(parents=True, exist_ok=True)
    files = ProblemFiles(folder / "examples.jsonl", folder / "prompts.jsonl", folder / "held_out.jsonl")
    _write_rows(files.examples, (_example(question) for question in examples))
    _write_rows(files.prompts, (_prompt(question) for question in prompts))
    _write_rows(files.held_out, (_prompt(question) for question in held_out))
    assert_disjoint([files.examples, files.prompts, files.held_out])
    return files


def assert_disjoint(files: Sequence[Path]) -> None:
    """Raises AssertionError where a question stands twice, in one file or in two. Read from the files themselves."""
    seen: dict[str, Path] = {}
    for file in files:
        for question in _questions(file):
            if question in seen:
                raise AssertionError(f"{question!r} is in {seen[question].name} and in {file.name}")
            seen[question] = file


def _questions(file: Path) -> list[str]:
    with file.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [(row.get("messages") or row["prompt"])[0]["content"] for row in rows]


def _example(question: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer(question)}]}


def _prompt(question: str) -> dict[str, Any]:
    return {"prompt": [{"role": "user", "content": question}], "answer": answer(question)}


def _write_rows(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    with file.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)
