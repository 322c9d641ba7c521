from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.dataset.datasets.chunks import rows as read_rows
from services.dataset.formats import formats
from services.dataset.reading.findings import Findings, Problems
from services.dataset.reading.input_layouts import canonical
from services.dataset.reading.limits import Limits
from services.dataset.reading.rows import encode
from services.dataset.uploads.validation import Progress, Report, validate
from services.mesh.errors import InvalidArgument
from tests.unit.dataset.fix_files import assistant, check, jsonl, user
from tests.unit.dataset.fix_rows import any_rows

GOOD = {"messages": [user("q"), assistant("a")]}
BAD = {"messages": [user("q")]}


@settings(max_examples=40)
@given(
    st.sampled_from(["messages", "preference", "prompt"]).flatmap(
        lambda name: st.tuples(st.just(name), st.lists(any_rows(name), min_size=1, max_size=10))
    ),
    st.integers(1, 300),
)
def test_the_report_counts_what_there_is(case: tuple[str, list[Any]], block: int) -> None:
    """Against each row explained by itself."""
    name, given_rows = case
    spellings: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    expected, distinct = [], set()
    for row in given_rows:
        findings = Findings(99)
        found = canonical(formats.get(name), row, Problems(findings, 1, 1))
        reasons.update(findings.counts)
        if found:
            spellings[found.spelling.name] += 1
            expected.append(encode(found.row))
            distinct.add(expected[-1])
    with tempfile.TemporaryDirectory() as folder:
        checked = check(Path(folder), jsonl(given_rows), format_name=name, block_bytes=block, target_bytes=200)
    report = checked.report
    assert checked.content.splitlines() == expected
    assert (report.rows, report.valid_rows) == (len(given_rows), len(expected))
    assert report.invalid_rows == len(given_rows) - len(expected)
    assert (report.spellings, report.findings_by_reason) == (dict(spellings), dict(reasons))
    assert report.finding_count == reasons.total()
    assert report.ok == (not reasons)
    assert report.statistics.duplicates == len(expected) - len(distinct)
    assert report.size_bytes == len(checked.content)


def test_three_findings_of_each_reason_are_kept_and_all_counted(tmp_path: Path) -> None:
    """150 of one reason hide nothing of another."""
    report = check(tmp_path, jsonl([GOOD] + [BAD] * 150 + [{}] * 50), limits=Limits()).report
    assert [finding.row for finding in report.findings] == [2, 3, 4, 152, 153, 154]
    assert report.finding_count == 200
    assert report.findings_by_reason == {"role_order": 150, "unknown_spelling": 50}
    assert not report.ok


def test_one_long_row_fills_a_chunk_alone(tmp_path: Path) -> None:
    long = {"messages": [user("q" * 500), assistant("a")]}
    chunks = check(tmp_path, jsonl([GOOD, long, GOOD, GOOD]), target_bytes=300).chunks
    assert [(chunk.first_row, chunk.rows) for chunk in chunks] == [(0, 1), (1, 1), (2, 2)]


def test_reports_travel_as_json(tmp_path: Path) -> None:
    report = check(tmp_path, jsonl([GOOD, BAD])).report
    assert msgspec.json.decode(msgspec.json.encode(report), type=Report) == report


def test_progress_rises_to_the_end_and_may_stop_the_run(tmp_path: Path) -> None:
    seen: list[Progress] = []
    content = jsonl([GOOD, BAD] * 500)
    check(tmp_path, content, on_progress=seen.append, block_bytes=1000)
    assert len(seen) > 10
    assert [p.bytes_read for p in seen] == sorted(p.bytes_read for p in seen)
    assert seen[-1] == Progress(len(content), len(content), 1000, 500)

    class StoppedError(Exception):
        pass

    def stop(progress: Progress) -> None:
        if progress.rows > 100:
            raise StoppedError

    with pytest.raises(StoppedError):
        check(tmp_path, content, on_progress=stop, block_bytes=1000)


def test_errors_of_the_sink_go_through(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(jsonl([GOOD]))

    def full(content: memoryview) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        validate(path, "x.jsonl", "messages", full)


def test_unknown_format(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument):
        check(tmp_path, b"{}", format_name="chat")


def test_the_version_does_not_depend_on_bad_rows_nor_on_spelling(tmp_path: Path) -> None:
    share = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
    expected = check(tmp_path, jsonl([GOOD, GOOD])).version_sha256
    assert check(tmp_path, jsonl([share, BAD, GOOD])).version_sha256 == expected
    assert check(tmp_path, jsonl([GOOD])).version_sha256 != expected


def test_what_was_sunk_is_what_is_read(tmp_path: Path) -> None:
    checked = check(tmp_path, jsonl([GOOD] * 10), target_bytes=200)
    found = [row for content in checked.sunk for row in read_rows(content, "messages")]
    assert [json.loads(encode(row)) for row in found] == [GOOD] * 10
