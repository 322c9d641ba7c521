"""Files from people who mean harm, or whose disk was full. No bytes raise anything but UnreadableFile."""

from __future__ import annotations

import gzip
import json
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.dataset.reading.findings import UnreadableFile
from services.dataset.reading.limits import Limits
from services.dataset.uploads.validation import validate
from tests.unit.dataset.fix_files import COMPRESSIONS, CONTAINERS, assistant, check, compress, encode, user

ROWS = [{"messages": [user(f"q{n}"), assistant("é" * n + "a")], "id": n} for n in range(20)]
VALID = {
    (container, suffix): compress(suffix, encode(container, ROWS))
    for container in CONTAINERS
    for suffix in COMPRESSIONS
}
FILES = st.sampled_from(sorted(VALID))
FORMATS = st.sampled_from(["messages", "preference", "prompt"])


def survives(content: bytes, name: str, format_name: str, block: int = 1 << 18) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            checked = check(Path(folder), content, name, format_name, block_bytes=block)
        except UnreadableFile as error:
            assert error.message
            return
    report = checked.report
    assert report.valid_rows == len(checked.rows)
    assert report.finding_count > 100 or report.invalid_rows == len({finding.row for finding in report.findings})


@settings(max_examples=150)
@given(st.binary(max_size=200), FILES, FORMATS, st.integers(1, 50))
def test_random_bytes(content: bytes, kind: tuple[str, str], format_name: str, block: int) -> None:
    container, suffix = kind
    survives(content, f"x.{container}{suffix}", format_name, block)
    if suffix:
        survives(compress(suffix, content), f"x.{container}{suffix}", format_name, block)


@settings(max_examples=250, suppress_health_check=[HealthCheck.too_slow])
@given(FILES, st.data(), FORMATS)
def test_damaged_files(kind: tuple[str, str], data: st.DataObject, format_name: str) -> None:
    content = bytearray(VALID[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content)))
        what = data.draw(st.sampled_from(["flip", "cut", "insert", "repeat"]))
        if what == "flip" and at < len(content):
            content[at] ^= data.draw(st.integers(1, 255))
        elif what == "cut":
            del content[at : at + data.draw(st.integers(1, 200))]
        elif what == "insert":
            content[at:at] = data.draw(st.binary(max_size=8))
        else:
            content[at:at] = content[at : at + 30]
    survives(bytes(content), "x.{}{}".format(*kind), format_name)


@pytest.mark.parametrize("kind", sorted(VALID))
def test_truncated_files_are_refused_or_lose_only_the_last_row(tmp_path: Path, kind: tuple[str, str]) -> None:
    content = VALID[kind]
    for size in range(0, len(content) - 1, max(len(content) // 40, 1)):
        try:
            report = check(tmp_path, content[:size], "x.{}{}".format(*kind)).report
        except UnreadableFile:
            continue
        assert kind[0] in ("jsonl", "csv")
        assert kind[1] == ""
        assert report.invalid_rows <= 1
        assert report.rows < len(ROWS) or report.invalid_rows == 1


def refused(folder: Path, content: bytes, name: str, limits: Limits | None = None) -> str:
    with pytest.raises(UnreadableFile) as caught:
        check(folder, content, name, limits=limits)
    return caught.value.reason


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.csv", "x.parquet", "x.jsonl.gz", "x.json.zst"])
def test_empty_files(tmp_path: Path, name: str) -> None:
    assert refused(tmp_path, b"", name) == "EMPTY_FILE"


@pytest.mark.parametrize(
    ("content", "name", "reason"),
    [
        (gzip.compress(b"", mtime=0), "x.jsonl.gz", "EMPTY_FILE"),
        (zstandard.compress(b""), "x.csv.zst", "EMPTY_FILE"),
        (b"\xef\xbb\xbf", "x.jsonl", "EMPTY_FILE"),
        (b" \n\n", "x.json", "EMPTY_FILE"),
        (b"[]", "x.json", "NO_ROWS"),
        (b'{"data": []}', "x.json", "NO_ROWS"),
        (b"prompt,completion\n", "x.csv", "NO_ROWS"),
        (b"PAR1", "x.parquet", "DAMAGED_FILE"),
        (gzip.compress(b"{}", mtime=0), "x.jsonl", "NAME_AND_CONTENT_DIFFER"),
        (zstandard.compress(b"{}"), "x.jsonl.gz", "NAME_AND_CONTENT_DIFFER"),
        (b"{}", "x.jsonl.gz", "NAME_AND_CONTENT_DIFFER"),
        (b"[{}]", "x.jsonl", "NAME_AND_CONTENT_DIFFER"),
        (b"a,b\n1,2\n", "x.json", "NAME_AND_CONTENT_DIFFER"),
        (b"{}", "x.csv", "NAME_AND_CONTENT_DIFFER"),
        (b"{}", "x.parquet", "NAME_AND_CONTENT_DIFFER"),
        (VALID["parquet", ""], "x.jsonl", "NAME_AND_CONTENT_DIFFER"),
        (b"PK\x03\x04xxxx", "x.csv", "NAME_AND_CONTENT_DIFFER"),
        ("{}".encode("utf-16"), "x.jsonl", "NOT_UTF8"),
    ],
)
def test_files_that_are_not_what_they_seem(tmp_path: Path, content: bytes, name: str, reason: str) -> None:
    assert refused(tmp_path, content, name) == reason


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("container", ["jsonl", "json", "csv", "parquet"])
def test_bombs(tmp_path: Path, container: str, suffix: str) -> None:
    start = {"jsonl": b"", "json": b"[", "csv": b"a,b\n", "parquet": b"PAR1"}[container]
    bomb = compress(suffix, start + b"\n" * 3_000_000)
    name = f"x.{container}{suffix}"
    assert refused(tmp_path, bomb, name, Limits(ratio=100, ratio_grace_bytes=1 << 20)) == "COMPRESSION_RATIO"
    assert refused(tmp_path, bomb, name, Limits(decompressed_bytes=1 << 20)) == "FILE_TOO_LARGE"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'{"messages": NaN}', "invalid_number"),
        (b'{"messages": [-Infinity]}', "invalid_number"),
        (b'{"messages": 1e999}', "invalid_number"),
        (b"9" * 5000, "invalid_number"),
        (b'{"messages": "\\ud800"}', "invalid_utf8"),
        (b'{"messages": "\xff"}', "invalid_utf8"),
        (b'{"messages": "\xed\xa0\x80"}', "invalid_utf8"),
        (b'{"a": ' * 5000, "too_deep"),
        (b'{"messages": "\0"}', "invalid_json"),
        (b"\0\0\0\0", "invalid_json"),
        (b'{"a": 1} {"b": 2}', "invalid_json"),
        (b"{'messages': []}", "invalid_json"),
        (b'{"messages": [', "invalid_json"),
        (b'"' + b"a" * 3000 + b'"', "row_too_long"),
    ],
)
def test_rows_that_are_no_json(tmp_path: Path, text: bytes, reason: str) -> None:
    good = json.dumps(ROWS[0]).encode()
    limits = Limits(row_bytes=2000) if reason == "row_too_long" else None
    checked = check(tmp_path, b"\n".join([good, good, text, good]), limits=limits)
    assert checked.found == [(3, "", reason)]
    assert checked.report.findings[0].line == 3
    assert len(checked.report.findings[0].message) < 300


def test_canonical_rows_keep_the_limit(tmp_path: Path) -> None:
    row = b'{"conversations":[{"from":"human","value":"a"},{"from":"gpt","value":"b"}]}\n'
    assert check(tmp_path, row * 3).report.ok
    long = row.replace(b'"a"', b'"' + b"a" * 50 + b'"')
    learnt = check(tmp_path, row * 3 + long, limits=Limits(row_bytes=len(long)), block_bytes=len(row))
    assert learnt.found == [(4, "", "row_too_long")]
    checked = check(tmp_path, row * 3, limits=Limits(row_bytes=len(row)))
    assert checked.found == [(n, "", "row_too_long") for n in (1, 2, 3)]


def test_parquet_limits(tmp_path: Path) -> None:
    content = VALID["parquet", ""]
    assert refused(tmp_path, content, "x.parquet", Limits(rows=19)) == "TOO_MANY_ROWS"
    assert refused(tmp_path, content, "x.parquet", Limits(columns=2)) == "TOO_MANY_COLUMNS"
    assert refused(tmp_path, content, "x.parquet", Limits(column_depth=1)) == "TOO_DEEP"
    assert refused(tmp_path, content, "x.parquet", Limits(row_group_bytes=10)) == "ROW_GROUP_TOO_LARGE"


def test_parquet_that_repeats_one_long_text(tmp_path: Path) -> None:
    """A dictionary holds the text once; 200 MB would come out of some kilobytes."""
    path = tmp_path / "bomb.parquet"
    pq.write_table(pa.table({"prompt": ["a" * 1_000_000] * 200}), path)
    assert path.stat().st_size < 2_000_000
    limits = Limits(ratio=100, ratio_grace_bytes=10_000_000)
    with pytest.raises(UnreadableFile) as caught:
        validate(path, "bomb.parquet", "prompt", lambda content: None, limits=limits)
    assert caught.value.reason == "COMPRESSION_RATIO"


TEXTS = pa.array(["a" * 1_000_000] * 200).dictionary_encode()


@pytest.mark.parametrize(
    "column",
    [
        TEXTS,
        TEXTS.cast(pa.dictionary(pa.int32(), pa.large_string())),
        pa.ListArray.from_arrays(pa.array(range(0, 201, 4)), TEXTS),
        pa.StructArray.from_arrays([TEXTS], ["text"]),
    ],
    ids=["texts", "large texts", "lists", "structs"],
)
def test_parquet_whose_dictionary_stays_one_when_it_is_read(tmp_path: Path, column: pa.Array[Any]) -> None:
    """As Arrow's own type of the column, which the file holds beside Parquet's."""
    path = tmp_path / "bomb.parquet"
    pq.write_table(pa.table({"prompt": column}), path)
    assert path.stat().st_size < 2_000_000
    out = 0

    def count(content: bytes | memoryview) -> None:
        nonlocal out
        out += len(content)

    with pytest.raises(UnreadableFile) as caught:
        validate(path, "bomb.parquet", "prompt", count, limits=Limits(ratio=100, ratio_grace_bytes=10_000_000))
    assert (caught.value.reason, out) == ("COMPRESSION_RATIO", 0)


def test_parquet_types_that_json_lacks(tmp_path: Path) -> None:
    import datetime
    import decimal

    table = pa.table(
        {
            "prompt": ["q", "r"],
            "answer": pa.array([1.0, None]),
            "when": pa.array([datetime.datetime(2024, 1, 2, 3, 4, 5), None], pa.timestamp("ns", "UTC")),
            "price": [decimal.Decimal("1.50"), None],
            "raw": [b"\xff\x00", None],
            "score": [float("nan"), float("inf")],
            "map": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())),
        }
    )
    path = tmp_path / "x.parquet"
    pq.write_table(table, path)
    checked = check(tmp_path, path.read_bytes(), "x.parquet", "prompt")
    assert checked.found == []
    assert checked.rows == [
        {"prompt": [user("q")], "answer": "1", "metadata": {"map": [["k", 1]], "price": "1.50", "raw": "/wA=",
         "when": "2024-01-02T03:04:05Z"}},
        {"prompt": [user("r")], "answer": None},
    ]  # fmt: skip


def test_parquet_text_that_is_not_utf8(tmp_path: Path) -> None:
    texts = pa.Array.from_buffers(pa.binary(), 3, pa.array([b"q", b"\xff", b"r"]).buffers()).view(pa.string())
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"prompt": texts}), path)
    checked = check(tmp_path, path.read_bytes(), "x.parquet", "prompt")
    assert checked.found == [(2, "", "invalid_utf8")]
    assert checked.report.valid_rows == 2


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.csv.gz", "x.jsonl.zst"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, name: str) -> None:
    def peak(count: int) -> int:
        rows: list[dict[str, Any]] = [{"prompt": "q" * 2000, "answer": str(n), "id": "x"} for n in range(count)]
        container, _, suffix = name[2:].partition(".")
        content = compress(f".{suffix}" if suffix else "", encode(container, rows))
        path = tmp_path / name
        path.write_bytes(content)
        del rows, content
        tracemalloc.start()
        try:
            validate(path, name, "prompt", lambda chunk: None, target_bytes=1 << 16, block_bytes=1 << 14)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(4000) < peak(400) + 600_000, "8 MB of rows"
