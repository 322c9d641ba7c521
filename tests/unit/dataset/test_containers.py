"""What is read does not depend on the container, the compression, or how the bytes arrive."""

from __future__ import annotations

import contextlib
import io
import json
import math
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.dataset.containers import csv_table, json_array, json_lines
from services.dataset.containers.batches import Broken, Lines, Texts
from services.dataset.reading.file_names import by_name
from services.dataset.reading.findings import UnreadableFile
from services.dataset.reading.limits import Limits
from tests.unit.dataset.fix_files import COMPRESSIONS, CONTAINERS, assistant, check, compress, encode, jsonl, user
from tests.unit.dataset.fix_rows import VALUES

CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20).filter(
    lambda text: not text.isspace() and text[0] not in "[{"
)
PLAIN = st.lists(
    st.fixed_dictionaries({"question": CELLS, "answer": CELLS}, optional={"source": CELLS}), min_size=1, max_size=8
)
MESSAGES = [
    {"messages": [user('say "a,b"\r\nnow'), assistant("é\nü")], "metadata": {"b": "x", "a": 1}},
    {"messages": [user("日本"), assistant("[1, 2]")], "metadata": {"a": 2}},
    {"messages": [user("q"), assistant("a"), user("q"), assistant("{}")]},
]


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("container", CONTAINERS)
def test_the_same_rows_give_the_same_version(tmp_path: Path, container: str, compression: str) -> None:
    content = compress(compression, encode(container, MESSAGES))
    checked = check(tmp_path, content, f"Chat.{container.upper()}{compression}")
    assert checked.found == []
    assert checked.version_sha256 == check(tmp_path, jsonl(MESSAGES)).version_sha256
    assert (checked.report.container, checked.report.compression) == by_name(f"x.{container}{compression}")
    assert checked.report.rows == 3


@settings(max_examples=40)
@given(PLAIN, st.sampled_from(CONTAINERS[1:]), st.sampled_from(COMPRESSIONS), st.integers(1, 60))
def test_any_rows_give_the_same_version(rows: list[Any], container: str, compression: str, block: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        reference = check(Path(folder), jsonl(rows), format_name="prompt", target_bytes=100)
        content = compress(compression, encode(container, rows))
        name = f"x.{container}{compression}"
        other = check(Path(folder), content, name, "prompt", target_bytes=100, block_bytes=block)
    assert other.sunk == reference.sunk
    assert other.version_sha256 == reference.version_sha256
    assert other.report.statistics == reference.report.statistics


@given(st.lists(st.sampled_from([b"{}", b"", b" ", b"a" * 9, b"b" * 30, b"x\r"]), max_size=12), st.integers(1, 40))
def test_lines_are_cut_as_splitting_the_whole_would(lines: list[bytes], block: int) -> None:
    content = b"\n".join(lines)
    found: list[tuple[int | None, bytes | None]] = []
    for batch in json_lines.read(io.BytesIO(content), Limits(row_bytes=9), block):
        if isinstance(batch, Lines):
            assert batch.count == len(batch.texts().texts)
            batch = batch.texts()
        if isinstance(batch, Texts):
            found += [(batch.line(index), text) for index, text in enumerate(batch.texts)]
        elif isinstance(batch, Broken):
            found.append((batch.line, None))
    expected = list(enumerate(content.split(b"\n"), 1))
    expected = expected[:-1] if not expected[-1][1] else expected
    assert found == [(number, line if len(line) <= 9 else None) for number, line in expected]


def elements(content: bytes, block: int) -> list[bytes]:
    batches = json_array.read(io.BytesIO(content), Limits(), block)
    return [text for batch in batches if isinstance(batch, Texts) for text in batch.texts]


FINITE = VALUES.filter(lambda value: not isinstance(value, float) or math.isfinite(value))


@settings(max_examples=200)
@given(st.lists(FINITE, max_size=6), st.sampled_from([None, 1]), st.integers(1, 50), st.booleans())
def test_arrays_are_cut_into_their_elements(rows: list[Any], indent: int | None, block: int, wrapped: bool) -> None:
    beside = {"x": {"data": [1], "y": "}]"}, "data": rows, "z": [[]]}
    content = json.dumps(beside if wrapped else rows, indent=indent, ensure_ascii=False).encode()
    assert [json.loads(element) for element in elements(content, block)] == rows


@settings(max_examples=200)
@given(st.text('[]{},":\\ a1\n', max_size=14), st.integers(1, 5))
def test_arrays_that_are_accepted_are_json_where_their_elements_are(text: str, block: int) -> None:
    """No malformed array passes unseen: if every element is JSON, so is the whole."""
    content = f"[{text}".encode()
    try:
        found = elements(content, block)
    except UnreadableFile as error:
        assert error.reason in ("MALFORMED_JSON", "TRUNCATED_FILE")
        with pytest.raises(ValueError, match=r"."):
            json.loads(content)
        return
    try:
        rows = [json.loads(element) for element in found]
    except ValueError:
        with pytest.raises(ValueError, match=r"."):
            json.loads(content)
        return
    assert json.loads(content) == rows


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'[{"a":1} {"b":2}]', "MALFORMED_JSON"),
        (b'[{"a":1},]', "MALFORMED_JSON"),
        (b'[,{"a":1}]', "MALFORMED_JSON"),
        (b'[{"a":1}]]', "MALFORMED_JSON"),
        (b'[{"a":1}] x', "MALFORMED_JSON"),
        (b'[{"a":1}][]', "MALFORMED_JSON"),
        (b'[{"a":1}]  "', "MALFORMED_JSON"),
        (b'[{"a":[}]', "MALFORMED_JSON"),
        (b'{"data":[{}],"train":[{}]}', "MALFORMED_JSON"),
        (b'[{"a":1}', "TRUNCATED_FILE"),
        (b'[{"a":"', "TRUNCATED_FILE"),
        (b"[" * 5000, "TOO_DEEP"),
        (b'{"a": {"data": []}}', "NO_ROWS"),
    ],
)
@pytest.mark.parametrize("block", [1, 7, 1000])
def test_broken_arrays(content: bytes, reason: str, block: int) -> None:
    with pytest.raises(UnreadableFile) as caught:
        elements(content, block)
    assert caught.value.reason == reason


@pytest.mark.parametrize("content", [b'[{}, {"a": "' + b"b" * 30 + b'"}]', b"[" + b"1" * 30, b'{"a": "' + b"b" * 30])
@pytest.mark.parametrize("block", [1, 7, 1000])
def test_a_row_over_the_limit_ends_an_array(content: bytes, block: int) -> None:
    """Where lines end a row nothing else is lost; in an array the next row could be anywhere."""
    with pytest.raises(UnreadableFile) as caught:
        list(json_array.read(io.BytesIO(content), Limits(row_bytes=20), block))
    assert caught.value.reason == "ROW_TOO_LONG"


@pytest.mark.parametrize("read", [json_lines.read, csv_table.read])
def test_of_an_endless_line_little_is_held(read: Any) -> None:
    class Endless:
        blocks = 200

        def read(self, size: int, /) -> bytes:
            self.blocks -= 1
            return b"a" * size if self.blocks else b""

    tracemalloc.start()
    try:
        with contextlib.suppress(UnreadableFile):
            assert [type(batch) for batch in read(Endless(), Limits(row_bytes=100_000), 10_000)] == [Broken]
        assert tracemalloc.get_traced_memory()[1] < 1_000_000, "2 MB went by"
    finally:
        tracemalloc.stop()


def test_rows_that_are_no_objects_are_findings_with_their_number(tmp_path: Path) -> None:
    content = json.dumps([MESSAGES[0], 1, "a,b", None, [2, [3]], MESSAGES[1], {"x": 1}]).encode()
    checked = check(tmp_path, content, "x.json", block_bytes=5)
    assert checked.found == [(row, "", "not_an_object") for row in (2, 3, 4, 5)] + [(7, "", "unknown_spelling")]
    assert all(finding.line is None for finding in checked.report.findings)


@pytest.mark.parametrize("content", [b'{"prompt": "q", "answer": "a"}', b'{"prompt": "q"}\n{"prompt": "r"}\n'])
def test_a_json_file_may_hold_json_lines(tmp_path: Path, content: bytes) -> None:
    checked = check(tmp_path, content, "x.json", "prompt")
    assert checked.report.container == "jsonl"
    assert checked.report.valid_rows == len(content.splitlines())


def test_lines_are_numbered_as_an_editor_does(tmp_path: Path) -> None:
    content = b'\xef\xbb\xbf\n{"prompt":"q"}\r\n\n  \n{"prompt":""}\n{\n{"prompt":"r"}'
    checked = check(tmp_path, content, format_name="prompt")
    assert [(f.row, f.line, f.reason.value) for f in checked.report.findings] == [
        (2, 5, "empty"),
        (3, 6, "invalid_json"),
    ]
    assert (checked.report.rows, checked.report.valid_rows) == (4, 2)


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.json"])
def test_rows_may_come_after_much_white_space(tmp_path: Path, name: str) -> None:
    container = name.removeprefix("x.")
    checked = check(tmp_path, b"\n" * (1 << 20) + encode(container, [{"prompt": "q", "answer": "a"}]), name, "prompt")
    assert (checked.found, checked.report.valid_rows) == ([], 1)


def test_csv_findings(tmp_path: Path) -> None:
    lines = [
        b"\xef\xbb\xbfquestion,answer,n",
        b'"two\nlines",1,2',
        b"",
        b"short,1",
        b'"quoted" badly,1,2',
        b",1,2",
        b"bytes \xff,1,2",
        b"last,1,",
    ]
    checked = check(tmp_path, b"\r\n".join(lines), "x.csv", "prompt")
    assert [(f.row, f.line, f.field, f.reason.value) for f in checked.report.findings] == [
        (2, 5, "", "csv_columns"),
        (3, 6, "", "csv_quoting"),
        (4, 7, "", "unknown_spelling"),
        (5, 8, "question[0].content", "invalid_utf8"),
    ]
    assert [row["prompt"][0]["content"] for row in checked.rows] == ["two\nlines", "last"]
    assert [row.get("metadata") for row in checked.rows] == [{"n": "2"}, None]


def test_csv_quote_that_never_ends(tmp_path: Path) -> None:
    content = b'question,answer\nq,a\n"q,a\n' + b"q,a\n" * 9
    checked = check(tmp_path, content, "x.csv", "prompt")
    assert [(f.row, f.line, f.reason.value) for f in checked.report.findings] == [(2, 3, "csv_quoting")]
    limited = check(tmp_path, content, "x.csv", "prompt", limits=Limits(row_bytes=20))
    assert (2, "", "row_too_long") in limited.found


def test_the_limit_of_a_csv_row_is_a_row_s(tmp_path: Path) -> None:
    content = b"question,answer\n" + b'"q\n%s",a\n' % (b"r" * 90) * 20 + b'"q\n%s",a\n' % (b"r" * 290)
    limited = check(tmp_path, content, "x.csv", "prompt", limits=Limits(row_bytes=200))
    assert limited.found[0] == (21, "", "row_too_long")
    assert limited.report.valid_rows == 20
    assert check(tmp_path, content, "x.csv", "prompt").report.ok


def test_csv_cells_that_are_json_text_stay_text(tmp_path: Path) -> None:
    content = (
        b'prompt,completion\n"[1, 2] sum?","{""city"": ""Paris""}"\n"[{""role"": ""user"", ""content"": ""q""}]",[x\n'
    )
    rows = check(tmp_path, content, "x.csv").rows
    assert [[m["content"] for m in row["messages"]] for row in rows] == [
        ["[1, 2] sum?", '{"city": "Paris"}'],
        ["q", "[x"],
    ]


@pytest.mark.parametrize(
    "header", [b"", b"a;b\n1;2\n", b"a\tb\n", b"a,a\n1,2\n", b"a,,b\n1,2,3\n", b'"a"b,c\n', b"a" * 99 + b"\n"]
)
def test_csv_headers_that_cannot_be_used(tmp_path: Path, header: bytes) -> None:
    with pytest.raises(UnreadableFile) as caught:
        check(tmp_path, b"\n" + header, "x.csv", "prompt", limits=Limits(row_bytes=50))
    assert caught.value.reason in ("CSV_HEADER", "EMPTY_FILE")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.jsonl", ("jsonl", "none")),
        ("A.NDJSON.GZ", ("jsonl", "gzip")),
        ("a.b.json.zst", ("json", "zstd")),
        ("x.csv", ("csv", "none")),
        ("x.parquet.gz", ("parquet", "gzip")),
    ],
)
def test_names(name: str, kind: tuple[str, str]) -> None:
    assert by_name(name) == kind


@pytest.mark.parametrize("name", ["", "x", "x.txt", "x.gz", "jsonl", "x.jsonl.bz2", "x.zip", ".jsonl.gz.gz"])
def test_names_that_say_nothing(name: str) -> None:
    with pytest.raises(UnreadableFile) as caught:
        by_name(name)
    assert caught.value.reason == "UNKNOWN_FILE_TYPE"
