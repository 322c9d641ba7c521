from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.dataset.formats.prompt import answer_text
from tests.unit.dataset.fix_files import assistant, check_rows, system, user

Row = dict[str, Any]
Q = [user("1+1?")]


@pytest.mark.parametrize(
    ("row", "spelling", "expected"),
    [
        ({"prompt": Q, "answer": "2"}, "prompt+answer", {"prompt": Q, "answer": "2"}),
        ({"prompt": "1+1?", "answer": 2}, "prompt+answer", {"prompt": Q, "answer": "2"}),
        ({"question": "1+1?", "answer": 2.0}, "question+answer", {"prompt": Q, "answer": "2"}),
        ({"problem": "1+1?", "solution": "2"}, "problem+solution", {"prompt": Q, "answer": "2"}),
        ({"question": "1+1?", "ground_truth": "2"}, "question+ground_truth", {"prompt": Q, "answer": "2"}),
        ({"prompt": "1+1?", "target": 0.1}, "prompt+target", {"prompt": Q, "answer": "0.1"}),
        ({"problem": "1+1?", "solution": "by hand", "answer": "2"}, "problem+answer",
         {"prompt": Q, "answer": "2", "metadata": {"solution": "by hand"}}),
        ({"prompt": "1+1?"}, "prompt", {"prompt": Q, "answer": None}),
        ({"prompt": Q, "answer": None}, "prompt", {"prompt": Q, "answer": None}),
        ({"prompt": "1+1?", "answer": "2", "system": "s"}, "prompt+answer",
         {"prompt": [system("s"), *Q], "answer": "2"}),
        ({"prompt": [*Q, assistant("2"), *Q], "answer": "2"}, "prompt+answer",
         {"prompt": [*Q, assistant("2"), *Q], "answer": "2"}),
        ({"data_source": "gsm8k", "prompt": Q, "ability": "math", "reward_model": {"style": "rule", "ground_truth": 2},
          "extra_info": {"index": 0, "none": None}}, "verl",
         {"prompt": Q, "answer": "2", "metadata": {"ability": "math", "data_source": "gsm8k",
          "extra_info": {"index": 0}, "reward_model": {"style": "rule"}}}),
        ({"prompt": Q, "reward_model": {"ground_truth": "2"}}, "verl", {"prompt": Q, "answer": "2"}),
    ],
)  # fmt: skip
def test_accepted(tmp_path: Path, row: Row, spelling: str, expected: Row) -> None:
    checked = check_rows(tmp_path, [row, row, row], "prompt")
    assert checked.found == []
    assert checked.rows == [expected] * 3
    assert checked.report.spellings == {spelling: 3}
    assert checked.report.statistics.rows_with_answer == (3 if expected["answer"] else 0)


@pytest.mark.parametrize(
    ("row", "field", "reason"),
    [
        ({"answer": "2"}, "", "unknown_spelling"),
        ({"prompt": "", "answer": "2"}, "prompt[0].content", "empty"),
        ({"prompt": [], "answer": "2"}, "prompt", "empty"),
        ({"prompt": [*Q, assistant("2")], "answer": "2"}, "prompt[1].role", "role_order"),
        ({"prompt": [system("s")], "answer": "2"}, "prompt[0].role", "role_order"),
        ({"question": "1+1?", "answer": ""}, "answer", "empty"),
        ({"question": "1+1?", "answer": True}, "answer", "wrong_type"),
        ({"question": "1+1?", "answer": ["2"]}, "answer", "wrong_type"),
        ({"question": "1+1?", "solution": {"a": 1}}, "solution", "wrong_type"),
        ({"question": "1+1?", "answer": "2\0"}, "answer", "nul_character"),
        ({"prompt": Q, "reward_model": {"style": "rule"}}, "reward_model.ground_truth", "missing"),
        ({"prompt": Q, "reward_model": "2"}, "reward_model", "wrong_type"),
        ({"prompt": Q, "reward_model": {"ground_truth": {"target": 2}}}, "reward_model.ground_truth", "wrong_type"),
    ],
)
def test_refused(tmp_path: Path, row: Row, field: str, reason: str) -> None:
    checked = check_rows(tmp_path, [{"prompt": "q", "answer": "a"}, row], "prompt")
    assert (2, field, reason) in checked.found
    assert checked.report.valid_rows == 1


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**30), 10**30))
def test_a_number_s_text_is_the_number(number: float) -> None:
    text = answer_text(number)
    assert text is not None
    assert float(text) == float(number)
    assert not text.endswith(".0")


@pytest.mark.parametrize("value", [True, None, [], {}, float("nan"), float("inf")])
def test_no_answer(value: Any) -> None:
    assert answer_text(value) is None
