"""The table of what is tried: each algorithm on each kind of model, tokenizer and chat template, in cells.

All of them together are too many (over a million). A covering set has every pair of values in one cell at least; the
diagonal has every value. Both are drawn the same way each time.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import combinations, product
from typing import Any, get_args

from tests.fix_zoo import ARCHITECTURES, TEMPLATES, TOKENIZERS, Dtype, Shape

# What carries a training out. Algorithms of one trainer differ in estimator and loss, so each is paired with all that a
# model may be in the part of it that they share.
TRAINERS = {
    "sft": ("sft",),
    "dpo": ("dpo",),
    "reward_model": ("reward_model",),
    "critic": ("ppo",),
    "policy": ("grpo", "gspo", "rloo", "reinforce_plus_plus", "dapo", "dr_grpo"),
}
# Further cells by their names, joined by commas, as `make test-long` prints them.
VARIABLE = "RLHF_MATRIX_CELLS"
TRIED = 40


@dataclass(frozen=True)
class Cell:
    algorithm: str
    adapter: bool
    shape: Shape

    @property
    def name(self) -> str:
        shape = self.shape
        return "-".join(
            [
                self.algorithm,
                "lora" if self.adapter else "full",
                shape.dtype,
                shape.architecture,
                "tied" if shape.tied else "untied",
                "sharded" if shape.sharded else "single",
                shape.tokenizer,
                shape.template,
            ]
        )

    @classmethod
    def named(cls, name: str) -> Cell:
        """Raises ValueError for a name of no cell."""
        parts = name.split("-")
        if len(parts) == len(CHOICES):
            algorithm, adapter, dtype, architecture, tied, sharded, tokenizer, template = parts
            shape: Any = {
                "dtype": dtype,
                "architecture": architecture,
                "tied": tied == "tied",
                "sharded": sharded == "sharded",
                "tokenizer": tokenizer,
                "template": template,
            }
            cell = cls(algorithm, adapter == "lora", Shape(**shape))
            known = {(name, value) for name, values in CHOICES.items() for value in values}
            if cell.name == name and set(cell.values()) <= known:
                return cell
        raise ValueError(f"{name} is no cell of the matrix; one is {DIAGONAL[0].name}")

    def values(self) -> list[tuple[str, Any]]:
        """By what they are values of."""
        shape = [(one.name, getattr(self.shape, one.name)) for one in fields(Shape)]
        return [("algorithm", self.algorithm), ("adapter", self.adapter), *shape]

    def pairs(self) -> set[tuple[Any, Any]]:
        """What it covers; an algorithm counts beside an architecture as what carries it out."""
        plain = self.values()
        trainer = next(name for name, algorithms in TRAINERS.items() if self.algorithm in algorithms)
        shared = [("trainer", trainer), *plain[1:]]
        return {*combinations(shared, 2), *((plain[0], other) for other in plain[1:] if other[0] in SMALL)}


ALGORITHMS = [name for names in TRAINERS.values() for name in names]
CHOICES: dict[str, Sequence[Any]] = {
    "algorithm": ALGORITHMS,
    "adapter": (False, True),
    "architecture": list(ARCHITECTURES),
    "dtype": get_args(Dtype),
    "tied": (True, False),
    "sharded": (False, True),
    "tokenizer": list(TOKENIZERS),
    "template": list(TEMPLATES),
}
# Of so few values that each algorithm itself meets all of them.
SMALL = ("adapter", "dtype", "tied", "sharded")


def _cell(algorithm: str, adapter: bool, **shape: Any) -> Cell:
    return Cell(algorithm, adapter, Shape(**shape))


def diagonal() -> list[Cell]:
    """As many as the longest choice has values: every value once at least, and others beside it each time."""
    longest = max(map(len, CHOICES.values()))
    columns: dict[str, list[Any]] = {}
    for step, (name, values) in enumerate(CHOICES.items()):
        # Else values of choices of the same length would always meet.
        columns[name] = [values[(place + place // len(values) * step) % len(values)] for place in range(longest)]
    return [_cell(**{name: column[place] for name, column in columns.items()}) for place in range(longest)]


def covering(begun: Sequence[Cell]) -> list[Cell]:
    """Cells that cover, together with `begun`, every pair: each the best of some drawn for a missing one."""
    drawn = random.Random(0)
    missing = all_pairs() - {pair for cell in begun for pair in cell.pairs()}
    cells: list[Cell] = []
    while missing:
        wanted = min(missing, key=str)
        cell = max((_drawn(drawn, wanted) for _ in range(TRIED)), key=lambda one: len(one.pairs() & missing))
        missing -= cell.pairs()
        cells.append(cell)
    return cells


def _drawn(numbers: random.Random, wanted: tuple[Any, Any]) -> Cell:
    chosen = {name: numbers.choice(values) for name, values in CHOICES.items()}
    for name, value in wanted:
        if name == "trainer":
            chosen["algorithm"] = numbers.choice(TRAINERS[value])
        else:
            chosen[name] = value
    return _cell(**chosen)


def all_pairs() -> set[tuple[Any, Any]]:
    shared = {"trainer": list(TRAINERS), **{name: values for name, values in CHOICES.items() if name != "algorithm"}}
    # In the order of a cell's own values.
    order = ["trainer", "adapter", *(one.name for one in fields(Shape))]
    found: set[tuple[Any, Any]] = set()
    for one, other in combinations(order, 2):
        found.update(product(((one, value) for value in shared[one]), ((other, value) for value in shared[other])))
    for name in SMALL:
        found.update(
            product((("algorithm", algorithm) for algorithm in ALGORITHMS), ((name, v) for v in CHOICES[name]))
        )
    return found


DIAGONAL = diagonal()


def wanted_cells() -> list[Cell]:
    """Those that the environment names."""
    return [Cell.named(name) for name in os.environ.get(VARIABLE, "").split(",") if name]
