from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.dataset.fix_files import assistant, check_rows, system, user

Row = dict[str, Any]
CANONICAL = {"prompt": [user("q")], "chosen": [assistant("good")], "rejected": [assistant("bad")]}
HUMAN = {"from": "human", "value": "q"}


@pytest.mark.parametrize(
    ("row", "spelling", "expected"),
    [
        (CANONICAL, "explicit_prompt", CANONICAL),
        ({"prompt": "q", "chosen": "good", "rejected": "bad"}, "explicit_prompt", CANONICAL),
        ({"prompt": "q", "chosen": assistant("good"), "rejected": "bad"}, "explicit_prompt", CANONICAL),
        ({"prompt": "q", "chosen": "good", "rejected": "bad", "system": "s"}, "explicit_prompt",
         {**CANONICAL, "prompt": [system("s"), user("q")]}),
        # UltraFeedback: both sides repeat the prompt.
        ({"prompt": "q", "chosen": [user("q"), assistant("good")], "rejected": [user("q"), assistant("bad")]},
         "explicit_prompt", CANONICAL),
        ({"chosen": [user("q"), assistant("good")], "rejected": [user("q"), assistant("bad")]}, "implicit_prompt",
         CANONICAL),
        # One dialogue is the beginning of the other: the prompt ends before the assistant.
        ({"chosen": [user("q"), assistant("good")],
          "rejected": [user("q"), assistant("good"), user("r"), assistant("x")]}, "implicit_prompt",
         {"prompt": [user("q")], "chosen": [assistant("good")],
          "rejected": [assistant("good"), user("r"), assistant("x")]}),
        ({"chosen": "\n\nHuman: q\n\nAssistant: good", "rejected": "\n\nHuman: q\n\nAssistant: bad"},
         "implicit_prompt", CANONICAL),
        # TRL's own example.
        ({"chosen": "The sky is blue.", "rejected": "The sky is green."}, "implicit_prompt",
         {"prompt": [user("The sky is")], "chosen": [assistant(" blue.")], "rejected": [assistant(" green.")]}),
        ({"chosen": "The sky is blue", "rejected": "The sky is bluest"}, "implicit_prompt",
         {"prompt": [user("The sky is")], "chosen": [assistant(" blue")], "rejected": [assistant(" bluest")]}),
        ({"instruction": "q", "input": "", "chosen": "good", "rejected": "bad"}, "alpaca", CANONICAL),
        ({"conversations": [HUMAN], "chosen": {"from": "gpt", "value": "good"},
          "rejected": {"from": "gpt", "value": "bad"}}, "sharegpt", CANONICAL),
    ],
)  # fmt: skip
def test_accepted(tmp_path: Path, row: Row, spelling: str, expected: Row) -> None:
    checked = check_rows(tmp_path, [row, {**row, "score": 1}], "preference")
    assert checked.found == []
    assert checked.rows == [expected, {**expected, "metadata": {"score": 1}}]
    assert checked.report.spellings == {spelling: 2}


@pytest.mark.parametrize(
    ("row", "field", "reason"),
    [
        ({"prompt": "q", "chosen": "a"}, "", "unknown_spelling"),
        ({**CANONICAL, "rejected": CANONICAL["chosen"]}, "rejected", "chosen_is_rejected"),
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "rejected", "chosen_is_rejected"),
        ({"chosen": "a b", "rejected": "a b"}, "rejected", "chosen_is_rejected"),
        ({"chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("a")]}, "rejected",
         "chosen_is_rejected"),
        ({"chosen": [user("p"), assistant("a")], "rejected": [user("q"), assistant("b")]}, "chosen",
         "no_common_prompt"),
        ({"chosen": "abc", "rejected": "abd"}, "chosen", "no_common_prompt"),
        ({"chosen": [user("q"), user("r")], "rejected": [user("q"), assistant("b")]}, "chosen[0].role", "role_order"),
        ({"prompt": "", "chosen": "a", "rejected": "b"}, "prompt[0].content", "empty"),
        ({"prompt": [assistant("q")], "chosen": "a", "rejected": "b"}, "prompt[0].role", "role_order"),
        ({"prompt": "q", "chosen": "", "rejected": "b"}, "chosen[0].content", "empty"),
        ({"prompt": "q", "chosen": "a", "rejected": 3}, "rejected", "wrong_type"),
        ({"prompt": "q", "chosen": [], "rejected": "b"}, "chosen", "empty"),
        ({"prompt": "other", "chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]}, "prompt",
         "conflict"),
        ({"instruction": " ", "chosen": "a", "rejected": "b"}, "instruction", "empty"),
        ({"chosen": 1, "rejected": 2}, "chosen", "wrong_type"),
    ],
)  # fmt: skip
def test_refused(tmp_path: Path, row: Row, field: str, reason: str) -> None:
    checked = check_rows(tmp_path, [CANONICAL, row], "preference")
    assert (2, field, reason) in checked.found
    assert checked.report.valid_rows == 1
