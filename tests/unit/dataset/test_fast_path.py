"""Rows are read in batches where that is safe. Whatever a file holds, what comes out is what each line gives alone."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.dataset.containers import json_lines
from services.dataset.containers.batches import Lines, Texts
from services.dataset.formats import formats
from services.dataset.reading.byte_counts import count, count_above
from services.dataset.reading.findings import Finding, Findings
from services.dataset.reading.limits import Limits
from services.dataset.reading.row_reader import RowReader
from tests.unit.dataset.fix_rows import any_rows

FORMATS = st.sampled_from(["messages", "preference", "prompt"])
LIMITS = Limits(findings=1000)
GOOD = '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "id": 1, "source": "s"}'


def dumped(row: Any, ascii_: bool, compact: bool) -> bytes:
    return json.dumps(row, ensure_ascii=ascii_, separators=(",", ":") if compact else None).encode("utf-8", "replace")


def twice(text: bytes) -> bytes:
    """With the first key again in front."""
    end = text.find(b":")
    return text[:1] + text[1:end] + b":0," + text[1:] if text.startswith(b"{") and end > 0 else text


SPOILT = {
    "as it is": lambda text: text,
    "key twice": twice,
    "key twice, marks as escapes": lambda text: twice(text.replace(b'\\"', b"\\u0022")),
    "over two lines": lambda text: text.replace(b",", b",\n", 1),
    "two on a line": lambda text: text + b" " + text,
    "blank lines": lambda text: b"\n \n" + text + b"\n",
    "carriage return": lambda text: text + b"\r",
    "cut": lambda text: text[:-1],
    "nul": lambda text: text.replace(b'": "', b'": "\\u0000', 1),
    "half a pair": lambda text: text.replace(b'": "', b'": "\\ud83d', 1),
    "not UTF-8": lambda text: text.replace(b'": "', b'": "\xff', 1),
    "no number": lambda text: text.replace(b": 1", b": NaN", 1),
    "short number": lambda text: text.replace(b": 1", b": 1e22", 1),
}  # fmt: skip
Read = tuple[list[bytes], int, Counter[str], list[Finding]]


def alone(name: str, content: bytes) -> Read:
    """Each line by a reader that has learnt nothing."""
    findings, encoded, spellings, rows = Findings(1000), [], Counter[str](), 0
    for number, line in enumerate(content.split(b"\n"), 1):
        result = RowReader(formats.get(name), findings, LIMITS).texts(Texts([line], number), rows + 1)
        encoded += result.encoded
        spellings += result.spellings
        rows += result.seen
    return encoded, rows, spellings, findings.kept


def together(name: str, content: bytes, block: int) -> Read:
    """The file by one reader, in blocks."""
    findings, encoded, spellings, rows = Findings(1000), [], Counter[str](), 0
    reader = RowReader(formats.get(name), findings, LIMITS)
    for batch in json_lines.read(io.BytesIO(content), LIMITS, block):
        assert isinstance(batch, Lines)
        result = reader.lines(batch, rows + 1)
        encoded += result.encoded
        spellings += result.spellings
        rows += result.seen
    return encoded, rows, spellings, findings.kept


TEXTS = st.tuples(st.sampled_from(sorted(SPOILT)), st.booleans(), st.booleans())


@settings(max_examples=150)
@given(
    FORMATS.flatmap(
        lambda name: st.tuples(st.just(name), st.lists(st.tuples(any_rows(name), TEXTS), min_size=1, max_size=8))
    ),
    st.integers(1, 5),
    st.integers(20, 3000),
)
def test_a_file_is_read_as_its_lines_are(case: tuple[str, list[Any]], times: int, block: int) -> None:
    """Each row is there several times, so that shapes are learnt before the spoilt ones come."""
    name, rows = case
    good = [dumped(row, False, False) for row, _ in rows] * times
    spoilt = [SPOILT[how](dumped(row, ascii_, compact)) for row, (how, ascii_, compact) in rows]
    content = b"\n".join([*good, *spoilt, *good])
    assert together(name, content, block) == alone(name, content)


@pytest.mark.parametrize("how", sorted(SPOILT))
@pytest.mark.parametrize("ascii_", [False, True])
def test_one_spoilt_row_among_many(how: str, ascii_: bool) -> None:
    row = json.loads(GOOD)
    row["messages"][0]["content"] = 'say "é" to \u4e2d'
    lines = [GOOD.encode()] * 40
    lines[25] = SPOILT[how](dumped(row, ascii_, compact=False))
    content = b"\n".join(lines)
    assert together("messages", content, 1 << 18) == together("messages", content, 200) == alone("messages", content)


def test_two_keys_twice_are_not_hidden_by_marks_written_as_escapes() -> None:
    """As many quotation marks as the canonical row has: two in the key, two fewer in the text."""
    spoilt = GOOD.replace('"q"', '"\\u0022q\\u0022"').replace('"id": 1', '"id": 1, "id": 1')
    for content in (spoilt, "\n".join([GOOD, GOOD, spoilt, GOOD])):
        *_, found = together("messages", content.encode(), 1 << 18)
        assert [finding.reason.value for finding in found] == ["duplicate_key"]


def test_a_key_twice_is_not_hidden_by_a_number_that_is_written_short() -> None:
    """`1e14` is `100000000000000.0` in the canonical row: as many characters more as the second key takes."""
    spoilt = GOOD.replace('"id": 1', '"id": 1e14, "source": "s"')
    *_, found = together("messages", "\n".join([GOOD, GOOD, spoilt, GOOD]).encode(), 1 << 18)
    assert [finding.reason.value for finding in found] == ["duplicate_key"]


def test_rows_alike_are_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this the fast path could be dead and every other test still pass."""
    alike = [GOOD, GOOD.replace("q", '\u4e2d\\n\\"x\\"'), GOOD.replace("1", "2.5")]
    for line in alike:
        reader = RowReader(formats.get("messages"), Findings(9), LIMITS)
        reader.texts(Texts([GOOD.encode()], 1), 1)
        content = (f"{line}\n" * 100).encode()
        with monkeypatch.context() as patch:
            patch.setattr(reader, "texts", None)  # what is called when all of them together would not do
            assert len(reader.lines(Lines(content, 1, 100), 1).rows) == 100


@given(st.binary(max_size=200), st.integers(0, 255))
def test_counts(content: bytes, byte: int) -> None:
    """In few bytes and in many, which are counted in other ways."""
    for times in (1, 128 * 1024 // (len(content) or 1) + 1):
        assert count(content * times, byte) == content.count(bytes([byte])) * times
        assert count_above(content * times, byte) == sum(each > byte for each in content) * times


def test_a_small_file_is_read_without_numpy(tmp_path: Path) -> None:
    """Importing it takes longer than reading the file."""
    (tmp_path / "a.jsonl").write_text(f"{GOOD}\n" * 100)
    code = (
        "import sys; from pathlib import Path; from services.dataset.uploads.validation import validate\n"
        "report = validate(Path(sys.argv[1]), 'a.jsonl', 'messages', lambda chunk: None)\n"
        "assert report.ok and report.rows == 100\n"
        "assert 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.jsonl")], check=True)
