from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.dataset.fix_files import assistant, check_rows, system, user

Row = dict[str, Any]
HI = [user("hi"), assistant("yo")]
TOOL = {"role": "tool", "content": ""}


@pytest.mark.parametrize(
    ("row", "spelling", "messages"),
    [
        ({"messages": HI}, "openai", HI),
        ({"messages": [system("s"), *HI, *HI]}, "openai", [system("s"), *HI, *HI]),
        ({"messages": [{"role": "user", "content": ["a", {"type": "text", "text": "b"}]}, HI[1]]}, "openai",
         [user("ab"), HI[1]]),
        ({"messages": [{"role": "developer", "content": "s"}, *HI]}, "openai", [system("s"), *HI]),
        ({"messages": [system(""), *HI]}, "openai", HI),
        ({"messages": HI, "system": "s"}, "openai", [system("s"), *HI]),
        ({"messages": [{**HI[0], "name": "Ann", "tool_calls": []}, HI[1]]}, "openai",
         [{**HI[0], "name": "Ann"}, HI[1]]),
        ({"messages": [HI[0], {**HI[1], "name": None, "reasoning": "hm"}]}, "openai",
         [HI[0], {**HI[1], "reasoning_content": "hm"}]),
        ({"messages": [HI[0], {**HI[1], "thinking": "hm", "reasoning": ""}]}, "openai",
         [HI[0], {**HI[1], "reasoning_content": "hm"}]),
        ({"messages": [HI[0], {**HI[1], "weight": 0}, {**HI[0], "weight": 0}, {**HI[1], "weight": 1}]}, "openai",
         [HI[0], {**HI[1], "weight": 0}, *HI]),
        ({"messages": [HI[0], {**HI[1], "loss_weight": 0.0}, {**HI[0], "train": False}, {**HI[1], "train": True}]},
         "openai", [HI[0], {**HI[1], "weight": 0}, *HI]),
        ({"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo", "loss": False},
                            {"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo", "loss": True}]},
         "sharegpt", [HI[0], {**HI[1], "weight": 0}, *HI]),
        # As in TRL, what was said before is not trained.
        ({"prompt": [*HI, HI[0]], "completion": "yo"}, "prompt_completion", [HI[0], {**HI[1], "weight": 0}, *HI]),
        ({"messages": [HI[0], assistant("call f"), TOOL, assistant("yo")]}, "openai",
         [HI[0], assistant("call f"), TOOL, assistant("yo")]),
        ({"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]}, "sharegpt", HI),
        ({"conversations": [{"from": "system", "value": "s"}, {"from": "user", "value": "hi"},
                            {"from": "assistant", "value": "yo"}]}, "sharegpt", [system("s"), *HI]),
        ({"conversations": HI, "system": "s"}, "sharegpt", [system("s"), *HI]),
        ({"instruction": "hi", "input": "", "output": "yo"}, "alpaca", HI),
        ({"instruction": "a", "input": "b", "output": "yo"}, "alpaca", [user("a\nb"), assistant("yo")]),
        ({"instruction": "hi", "output": "yo", "system": "s", "history": [["q", "r"]]}, "alpaca",
         [system("s"), user("q"), assistant("r"), *HI]),
        ({"prompt": "hi", "completion": "yo"}, "prompt_completion", HI),
        ({"prompt": [system("s"), HI[0]], "completion": [HI[1]]}, "prompt_completion", [system("s"), *HI]),
        ({"prompt": [HI[0]], "completion": "yo"}, "prompt_completion", HI),
        # The first spelling that fits wins, null keys do not count.
        ({"conversations": None, "messages": HI, "completion": None}, "openai", HI),
    ],
)  # fmt: skip
def test_accepted(tmp_path: Path, row: Row, spelling: str, messages: list[Row]) -> None:
    checked = check_rows(tmp_path, [row, row], "messages")
    assert checked.found == []
    assert checked.rows == [{"messages": messages}] * 2
    assert checked.report.spellings == {spelling: 2}


@pytest.mark.parametrize(
    ("row", "field", "reason"),
    [
        ([1], "", "not_an_object"),
        ({}, "", "unknown_spelling"),
        ({"text": "a"}, "", "unknown_spelling"),
        ({"messages": None}, "", "unknown_spelling"),
        ({"messages": "hi"}, "messages", "wrong_type"),
        ({"messages": []}, "messages", "empty"),
        ({"messages": ["hi"]}, "messages[0]", "wrong_type"),
        ({"messages": [{"content": "hi"}]}, "messages[0].role", "missing"),
        ({"messages": [{"role": 1, "content": "hi"}]}, "messages[0].role", "wrong_type"),
        ({"messages": [{"role": "admin", "content": "hi"}]}, "messages[0].role", "unknown_role"),
        ({"messages": [{"role": "user"}, HI[1]]}, "messages[0].content", "missing"),
        ({"messages": [{"role": "user", "content": 3}, HI[1]]}, "messages[0].content", "wrong_type"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, HI[1]]},
         "messages[0].content[0]", "unsupported_part"),
        ({"messages": [HI[0], {**HI[1], "tool_calls": [{"id": 1}]}]}, "messages[1].tool_calls", "tool_calls"),
        ({"messages": [HI[0], {**HI[1], "function_call": {"name": "f"}}]}, "messages[1].function_call", "tool_calls"),
        ({"messages": [{**HI[0], "images": ["a.png"]}, HI[1]]}, "messages[0].images", "media"),
        ({"messages": HI, "image": "a.png"}, "image", "media"),
        ({"messages": HI, "videos": ["a.mp4"]}, "videos", "media"),
        ({"messages": HI, "audio": {"array": [0.5]}}, "audio", "media"),
        ({"messages": HI, "tools": [{"type": "function"}]}, "tools", "tool_calls"),
        ({"messages": HI, "tools": '[{"type": "function"}]'}, "tools", "tool_calls"),
        ({"prompt": "a", "completion": "b", "label": False}, "label", "kto_label"),
        ({"prompt": "a", "completion": "b", "label": "True"}, "label", "kto_label"),
        ({"messages": HI, "kto_tag": True}, "kto_tag", "kto_label"),
        ({"messages": [HI[0], {**HI[1], "weight": 0.5}]}, "messages[1].weight", "unsupported_weight"),
        ({"messages": [HI[0], {**HI[1], "train": "no"}]}, "messages[1].train", "unsupported_weight"),
        ({"messages": [{**HI[0], "train": True}, HI[1]]}, "messages[0].train", "unsupported_weight"),
        ({"messages": [HI[0], {**HI[1], "train": True, "weight": 0}]}, "messages[1].train", "conflict"),
        ({"messages": [HI[0], {**HI[1], "weight": 0}]}, "messages", "nothing_trained"),
        ({"messages": [{**HI[0], "reasoning": "hm"}, HI[1]]}, "messages[0].reasoning", "conflict"),
        ({"messages": [HI[0], {**HI[1], "reasoning": "a", "thinking": "b"}]}, "messages[1].thinking", "conflict"),
        ({"messages": [HI[0], {**HI[1], "reasoning_content": "\0"}]}, "messages[1].reasoning_content", "nul_character"),
        ({"messages": [{**HI[0], "name": 3}, HI[1]]}, "messages[0].name", "wrong_type"),
        ({"messages": [HI[0]]}, "messages[0].role", "role_order"),
        ({"messages": [HI[1]]}, "messages[0].role", "role_order"),
        ({"messages": [HI[0], HI[0], HI[1]]}, "messages[1].role", "role_order"),
        ({"messages": [*HI, HI[1]]}, "messages[2].role", "role_order"),
        ({"messages": [*HI, system("s"), *HI]}, "messages[2].role", "role_order"),
        ({"messages": [HI[0], TOOL, HI[1]]}, "messages[1].role", "role_order"),
        ({"messages": [user(" \n"), HI[1]]}, "messages[0].content", "empty"),
        ({"messages": [HI[0], assistant("")]}, "messages[1].content", "empty"),
        ({"messages": [user("a\0b"), HI[1]]}, "messages[0].content", "nul_character"),
        ({"messages": [system("s"), *HI], "system": "t"}, "system", "conflict"),
        ({"messages": HI, "system": 3}, "system", "wrong_type"),
        ({"messages": HI, "metadata": 3}, "metadata", "wrong_type"),
        ({"instruction": "", "input": "b", "output": "yo"}, "instruction", "empty"),
        ({"instruction": "a", "output": 3}, "output", "wrong_type"),
        ({"instruction": "a", "output": " "}, "output", "empty"),
        ({"instruction": "a", "output": "b", "history": [["q"]]}, "history[0]", "wrong_type"),
        ({"instruction": "a", "output": "b", "history": "q"}, "history", "wrong_type"),
        ({"prompt": "a", "completion": ""}, "completion[0].content", "empty"),
        ({"prompt": "a", "completion": [user("b")]}, "completion[0].role", "role_order"),
        ({"prompt": 3, "completion": "b"}, "prompt", "wrong_type"),
    ],
)  # fmt: skip
def test_refused(tmp_path: Path, row: Any, field: str, reason: str) -> None:
    checked = check_rows(tmp_path, [{"messages": HI}, row], "messages")
    assert (2, field, reason) in checked.found
    assert {found[0] for found in checked.found} == {2}
    assert (checked.report.valid_rows, checked.report.invalid_rows) == (1, 1)


def test_every_problem_of_a_row_is_reported_at_once(tmp_path: Path) -> None:
    row = {"messages": [HI[1], user("")], "metadata": 1, "system": 2}
    assert sorted(field for _, field, _ in check_rows(tmp_path, [row], "messages").found) == [
        "messages[0].role", "messages[1].content", "messages[1].role", "metadata", "system",
    ]  # fmt: skip


def test_a_message_says_what_would_be_right(tmp_path: Path) -> None:
    finding = check_rows(tmp_path, [{"messages": [{"role": "admin", "content": "x"}]}], "messages").report.findings[0]
    assert (finding.row, finding.line, finding.field) == (1, 1, "messages[0].role")
    assert "'admin'" in finding.message
    assert "assistant" in finding.message


@pytest.mark.parametrize(
    ("extra", "metadata"),
    [
        ({"id": 3, "b": "x", "a": True}, {"a": True, "b": "x", "id": 3}),
        (
            {"score": 0.5, "none": None, "nested": {"a": None, "b": [1, None]}},
            {"nested": {"b": [1, None]}, "score": 0.5},
        ),
        ({"metadata": {"id": 1}, "id": 2, "x": 3}, {"id": 1, "x": 3}),
        ({"metadata": {}}, None),
        ({"prompt": "p", "conversations": "c"}, {"conversations": "c", "prompt": "p"}),
        ({"not an identifier": 1, "class": 2}, {"class": 2, "not an identifier": 1}),
    ],
)
def test_unknown_keys_become_metadata(tmp_path: Path, extra: Row, metadata: Row | None) -> None:
    checked = check_rows(tmp_path, [{"messages": HI, **extra}] * 3, "messages")
    expected = {"messages": HI} if metadata is None else {"messages": HI, "metadata": metadata}
    assert checked.rows == [expected] * 3
    assert list(checked.rows[2].get("metadata", {})) == sorted(metadata or {})


def test_what_is_no_longer_in_a_row_is_told_by_name(tmp_path: Path) -> None:
    """Keys of messages go to the metadata too, under the place where they stood, and all are counted."""
    part = {"type": "text", "text": "hi", "cache_control": "x"}
    rows = [
        {"messages": [{**HI[0], "content": [part]}, {**HI[1], "id": 7, "timestamp": None}], "source": "s"},
        *[{"messages": HI, "source": "s", "score": score} for score in (0.5, 0.25, None)],
    ]
    checked = check_rows(tmp_path, rows, "messages")
    assert checked.found == []
    assert checked.rows[0]["metadata"] == {
        "message_keys": {"messages[0].content[0]": {"cache_control": "x"}, "messages[1]": {"id": 7}},
        "source": "s",
    }
    told = {"messages[].content[].cache_control": 1, "messages[].id": 1, "score": 2, "source": 4}
    assert checked.report.kept_keys == told
    # What was downloaded is taken again as it is.
    again = check_rows(tmp_path, checked.rows, "messages")
    assert (again.found, again.content) == ([], checked.content)


def test_names_of_kept_keys_are_bounded(tmp_path: Path) -> None:
    checked = check_rows(tmp_path, [{"messages": HI, f"k{index}": 1} for index in range(300)], "messages")
    assert checked.report.valid_rows == 300
    assert (len(checked.report.kept_keys), checked.report.kept_keys["(other keys)"]) == (101, 200)


@pytest.mark.parametrize("key", ["image", "label", "tools"])
def test_a_watched_key_is_seen_after_rows_in_which_it_said_nothing(tmp_path: Path, key: str) -> None:
    rows = [{"messages": HI, key: ""} for _ in range(40)]
    checked = check_rows(tmp_path, [*rows, {"messages": HI, key: True}], "messages")
    assert [(row, field) for row, field, _ in checked.found] == [(41, key)]


def test_canonical_bytes(tmp_path: Path) -> None:
    row = {"id": 1, "messages": [{"content": 'é "/"\u2028', "role": "user"}, assistant("a\nb")]}
    assert (
        check_rows(tmp_path, [row], "messages").content
        == (
            '{"messages":[{"role":"user","content":"é \\"/\\"\u2028"},'
            '{"role":"assistant","content":"a\\nb"}],"metadata":{"id":1}}\n'
        ).encode()
    )


def test_metadata_too_deep(tmp_path: Path) -> None:
    def nested(levels: int) -> Any:
        return {"a": nested(levels - 1)} if levels else 1

    checked = check_rows(tmp_path, [{"messages": HI, "x": nested(n)} for n in (1, 23, 24, 200, 1)], "messages")
    assert checked.found == [(3, "metadata", "too_deep"), (4, "metadata", "too_deep")]
