"""The two readings of a row agree, and canonical rows are fixed points."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.dataset.containers.batches import Texts, Values
from services.dataset.formats import formats
from services.dataset.reading.fast_decode import Shapes
from services.dataset.reading.findings import Findings, Problems
from services.dataset.reading.input_layouts import canonical
from services.dataset.reading.limits import Limits
from services.dataset.reading.row_reader import RowReader
from services.dataset.reading.rows import encode
from services.mesh.errors import InvalidArgument
from services.mesh.registry import summary
from tests.unit.dataset.fix_rows import any_rows, valid_rows

FORMATS = st.sampled_from(["messages", "preference", "prompt"])


def explained(format_name: str, row: Any) -> tuple[str, bytes] | None:
    found = canonical(formats.get(format_name), row, Problems(Findings(9), 1, 1))
    return (found.spelling.name, encode(found.row)) if found else None


def test_the_registry() -> None:
    assert formats.names() == ["messages", "preference", "prompt"]
    assert all(summary(entry) and entry.name == name for name, entry in formats.items())
    with pytest.raises(InvalidArgument, match="messages, preference, prompt"):
        formats.get("chat")


@given(FORMATS.flatmap(lambda name: st.tuples(st.just(name), valid_rows(name))))
def test_valid_rows_are_accepted(case: tuple[str, Any]) -> None:
    assert explained(*case) is not None


@given(FORMATS.flatmap(lambda name: st.tuples(st.just(name), any_rows(name))))
def test_canonicalising_twice_changes_nothing(case: tuple[str, Any]) -> None:
    name, row = case
    first = explained(name, row)
    if first is not None:
        second = explained(name, json.loads(first[1]))
        assert second is not None
        assert second[1] == first[1]


@settings(max_examples=150)
@given(FORMATS.flatmap(lambda name: st.tuples(st.just(name), st.lists(any_rows(name), min_size=2, max_size=8))),
       st.booleans())  # fmt: skip
def test_the_fast_path_reads_as_the_explaining_path_does(case: tuple[str, list[Any]], as_values: bool) -> None:
    """Whatever shapes earlier rows have taught, each row becomes what it is by itself."""
    name, rows = case
    findings = Findings(1000)
    reader = RowReader(formats.get(name), findings, Limits())
    got = []
    for _ in range(2):
        for start in range(0, len(rows), 3):
            part = rows[start : start + 3]
            texts = [json.dumps(row).encode() for row in part]
            result = reader.values(Values(part, None), 1) if as_values else reader.texts(Texts(texts, 1), 1)
            assert result.seen == len(part)
            got += result.encoded
    expected = [found[1] for row in rows if (found := explained(name, row))]
    assert got == expected * 2
    assert (findings.total == 0) == (len(expected) == len(rows))


@given(FORMATS.flatmap(lambda name: st.tuples(st.just(name), valid_rows(name))))
def test_valid_rows_without_nulls_teach_a_shape(case: tuple[str, Any]) -> None:
    """Without this the fast path could be dead and every other test still pass."""
    name, row = case
    row = json.loads(json.dumps({key: value for key, value in row.items() if value is not None}))
    entry = formats.get(name)
    found = canonical(entry, row, Problems(Findings(9), 1, 1))
    assert found is not None
    shapes = Shapes(entry)
    shapes.learn(found.spelling, row, found.row)
    assert shapes.first is not None
    assert shapes.first.spelling is found.spelling


SHAREGPT = {"conversations": [{"from": "human", "value": "c"}, {"from": "gpt", "value": "c"}]}
OPENAI = {"messages": [{"role": "user", "content": "m"}, {"role": "assistant", "content": "m"}]}


@pytest.mark.parametrize(
    ("format_name", "teaching", "row", "spelling"),
    [
        ("messages", {**SHAREGPT, "messages": None}, {**SHAREGPT, **OPENAI}, "openai"),
        ("messages", {"prompt": "p", "completion": "c", "output": "o"},
         {"prompt": "p", "completion": "c", "output": "o", "instruction": "i"}, "alpaca"),
        ("prompt", {"question": "q", "answer": "a", "prompt": None}, {"question": "q", "answer": "a", "prompt": "p"},
         "prompt+answer"),
        ("preference", {"chosen": OPENAI["messages"], "rejected": [OPENAI["messages"][0], SHAREGPT["conversations"][1]],
                        "instruction": None}, {"chosen": "a b", "rejected": "a c", "instruction": "i"}, "alpaca"),
    ],
)  # fmt: skip
def test_what_was_learnt_does_not_hide_a_spelling_that_takes_precedence(
    format_name: str, teaching: Any, row: Any, spelling: str
) -> None:
    reader = RowReader(formats.get(format_name), Findings(9), Limits())
    lines = [json.dumps(each).encode() for each in (teaching, teaching, row)]
    found = reader.texts(Texts(lines, 1), 1)
    assert found.spellings[spelling] == 1
    assert found.encoded[2] == (explained(format_name, row) or ("", b""))[1]


def test_learning_is_bounded() -> None:
    entry = formats.get("messages")
    reader = RowReader(entry, Findings(9), Limits())
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    texts = [json.dumps({"messages": messages, f"key {n}": n}).encode() for n in range(500)]
    assert len(reader.texts(Texts(texts, 1), 1).rows) == 500
    assert len(list(reader._shapes)) <= len(entry.spellings)
    assert len(reader._shapes.first.extras) <= 64  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "text",
    [
        '{"messages":[{"role":"user","content":"a","content":"b"},{"role":"assistant","content":"c"}]}',
        '{"messages":[],"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"c"}]}',
        '{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"c"}],"id":1,"id":2}',
        '{"messages" : [{"role" :"user","ro\\u006ce":"user","content":"a"},{"role":"assistant","content":"c"}]}',
        '{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"c"}],"x":{"y":[{"k":1,"k":1}]}}',
    ],
)
@pytest.mark.parametrize("learnt", [0, 3])
def test_a_key_twice_is_found_on_both_paths(text: str, learnt: int) -> None:
    findings = Findings(9)
    reader = RowReader(formats.get("messages"), findings, Limits())
    good = json.dumps(
        {"messages": [{"role": "user", "content": '"q"'}, {"role": "assistant", "content": "b"}], "id": 1}
    )
    for _ in range(learnt):
        assert len(reader.texts(Texts([good.encode()], 1), 1).rows) == 1
    assert reader.texts(Texts([text.encode()], 1), 1).rows == []
    assert dict(findings.counts) == {"duplicate_key": 1}


def test_quotes_written_as_escapes_are_no_key_twice() -> None:
    findings = Findings(9)
    reader = RowReader(formats.get("messages"), findings, Limits())
    text = b'{"messages":[{"role":"user","content":"\\u0022a\\u0022 \\/ \\u00e9"},{"role":"assistant","content":"c"}]}'
    rows = [row for _ in range(3) for row in reader.texts(Texts([text], 1), 1).encoded]
    assert (
        rows
        == ['{"messages":[{"role":"user","content":"\\"a\\" / é"},{"role":"assistant","content":"c"}]}'.encode()] * 3
    )
    assert findings.total == 0
