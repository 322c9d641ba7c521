"""The table of the matrix: what it covers, and that a cell is found by its name."""

from __future__ import annotations

import pytest

from tests.fix_matrix import ALGORITHMS, CHOICES, DIAGONAL, TRAINERS, Cell, all_pairs, covering


def test_the_diagonal_has_every_value() -> None:
    for name, values in CHOICES.items():
        assert {dict(cell.values())[name] for cell in DIAGONAL} == set(values)


def test_every_pair_is_in_a_cell_and_the_table_is_the_same_each_time() -> None:
    cells = covering(DIAGONAL)
    assert {pair for cell in [*DIAGONAL, *cells] for pair in cell.pairs()} == all_pairs()
    assert cells == covering(DIAGONAL) and len(cells) == len({cell.name for cell in cells}) < 80
    shapes = [(("trainer", "dpo"), ("architecture", "phi3")), (("dtype", "fp16"), ("template", "gemma"))]
    assert set(shapes) <= all_pairs()


def test_a_cell_is_found_by_its_name() -> None:
    for cell in DIAGONAL:
        assert Cell.named(cell.name) == cell
    for wrong in ("sft-full", DIAGONAL[0].name.replace("llama", "lama")):
        with pytest.raises(ValueError, match="one is sft-full-bf16-llama"):
            Cell.named(wrong)


def test_every_algorithm_is_in_it() -> None:
    from services.trainer.algorithms import algorithms

    assert sorted(ALGORITHMS) == sorted(algorithms.names())
    assert sum(map(len, TRAINERS.values())) == len(ALGORITHMS)
