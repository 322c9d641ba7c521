"""The demonstration's problems: right, distinct, reproducible."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.cli.demo import problems
from services.cli.demo.problems import ALPHABET, ProblemFiles, Sizes

SIZES = Sizes(examples=30, prompts=200, held_out=50, digits=4)


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def everything(files: ProblemFiles) -> list[bytes]:
    return [file.read_bytes() for file in (files.examples, files.prompts, files.held_out)]


def test_rows(tmp_path: Path) -> None:
    files = problems.write(7, SIZES, tmp_path / "new" / "folder")
    examples, prompts, held_out = rows(files.examples), rows(files.prompts), rows(files.held_out)
    assert (len(examples), len(prompts), len(held_out)) == (30, 200, 50)
    for row in examples:
        assert list(row) == ["messages"]
        question, reply = row["messages"]
        assert (question["role"], reply["role"]) == ("user", "assistant")
        assert reply["content"] == "".join(sorted(question["content"]))
    for row in prompts + held_out:
        assert list(row) == ["prompt", "answer"]
        (question,) = row["prompt"]
        assert question["role"] == "user"
        assert row["answer"] == "".join(sorted(question["content"]))
        assert len(question["content"]) == 4
        assert set(question["content"]) <= set(ALPHABET)


def test_the_seed_decides_everything(tmp_path: Path) -> None:
    first, again, other = (
        everything(problems.write(seed, SIZES, tmp_path / str(at))) for at, seed in enumerate([1, 1, 2])
    )
    assert first == again
    assert all(ours != theirs for ours, theirs in zip(first, other, strict=True))


def test_the_held_out_set_does_not_depend_on_the_training_sets(tmp_path: Path) -> None:
    small = problems.write(1, SIZES, tmp_path / "small")
    large = problems.write(1, Sizes(examples=60, prompts=400, held_out=50, digits=4), tmp_path / "large")
    assert small.held_out.read_bytes() == large.held_out.read_bytes()


def test_every_number_can_be_used_once(tmp_path: Path) -> None:
    files = problems.write(3, Sizes(examples=2, prompts=5, held_out=3, digits=1), tmp_path)
    asked = [row["messages"][0]["content"] for row in rows(files.examples)]
    asked += [row["prompt"][0]["content"] for file in (files.prompts, files.held_out) for row in rows(file)]
    assert sorted(asked) == list(ALPHABET)


@pytest.mark.parametrize("sizes", [(0, 1, 1, 2), (1, 1, 1, 0), (50, 50, 1, 2), (1, -1, 1, 2)])
def test_impossible_sizes_are_refused(sizes: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"positive|only"):
        Sizes(*sizes)


def test_a_shared_question_is_found(tmp_path: Path) -> None:
    files = problems.write(1, SIZES, tmp_path)
    leaked = rows(files.held_out)[0]["prompt"][0]["content"]
    with files.examples.open("a") as out:
        out.write(json.dumps({"messages": [{"role": "user", "content": leaked}]}) + "\n")
    with pytest.raises(AssertionError, match=leaked):
        problems.assert_disjoint([files.examples, files.prompts, files.held_out])


@given(st.text(ALPHABET, max_size=12))
def test_an_answer_is_the_same_digits_in_order(question: str) -> None:
    answer = problems.answer(question)
    assert sorted(answer) == sorted(question)
    assert all(left <= right for left, right in itertools.pairwise(answer))
