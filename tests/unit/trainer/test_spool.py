"""The spool: nothing lost, nothing twice, nothing raised into training."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.mesh.runs import spool
from services.mesh.runs.spool import End, Metrics, Phase, Problem, Sample, SampleBatch, SpoolWriter
from services.trainer.runs import records
from services.trainer.runs.records import Checkpoint, read_from

ALL_KINDS = [
    Metrics(step=1, values={"train/loss": 0.5, "many": 1e300}),
    Phase(phase="training", step=1, total_steps=2),
    SampleBatch(
        step=1,
        split="validation",
        samples=[Sample(row_index=0, prompt="1\n2", completion="é", expected=None, score=1.0, parts={"correct": 1.0})],
    ),
    Checkpoint(step=1, kind="adapter", state="ready", path="/p", training_state_path="/t", manifest_sha256="ab"),
    Problem(severity="warning", message="m", remedy="r"),
    End(outcome="failed", step=1, reason="R", traceback="a\nb"),
]


def read_all(path: Path, limit_bytes: int = 1 << 20) -> list[spool.Record]:
    found, offset = [], 0
    while True:
        some, following = read_from(path, offset, limit_bytes)
        found += some
        if following == offset:
            return found
        offset = following


@pytest.mark.parametrize("record", ALL_KINDS, ids=lambda record: type(record).__name__)
def test_a_record_survives(record: spool.Record) -> None:
    assert records.DECODER.decode(spool.encode(record)) == record
    assert spool.encode(record).count(b"\n") == 1


def test_the_numbers_that_training_goes_wrong_with_survive() -> None:
    values = {"a": math.nan, "b": math.inf, "c": -math.inf}
    line = spool.encode(Metrics(step=1, values=values))
    assert b'"a":"NaN","b":"Infinity","c":"-Infinity"' in line
    found = records.DECODER.decode(line)
    assert isinstance(found, Metrics)
    assert math.isnan(found.values["a"]) and found.values["b"] == math.inf and found.values["c"] == -math.inf


@given(
    texts=st.lists(st.text(max_size=30), max_size=12),
    cuts=st.lists(st.integers(0, 3000), max_size=6),
    limit=st.integers(1, 200),
)
def test_any_split_of_writes_and_reads_gives_each_record_once(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], cuts: list[int], limit: int
) -> None:
    """The file grows by arbitrary pieces, lines torn in the middle; it is read after each."""
    path = tmp_path_factory.mktemp("spool") / "spool.jsonl"
    written = [Problem(severity="info", message=text) for text in texts]
    data = b"".join(spool.encode(record) for record in written)
    found, offset, start = [], 0, 0
    for end in [*sorted(cut for cut in cuts if cut < len(data)), len(data)]:
        with path.open("ab") as file:
            file.write(data[start:end])
        start = end
        while (step := read_from(path, offset, limit))[1] != offset:
            found += step[0]
            offset = step[1]
    assert found == written


def test_a_file_that_is_not_there_yet_is_empty(tmp_path: Path) -> None:
    assert read_from(tmp_path / "spool.jsonl", 0) == ([], 0)


def test_a_line_longer_than_the_limit_is_read_whole(tmp_path: Path) -> None:
    writer = SpoolWriter(tmp_path / "spool.jsonl")
    writer.append(Problem(severity="info", message="x" * 5000))
    writer.append(Problem(severity="info", message="y"))
    assert [record.message for record in read_all(tmp_path / "spool.jsonl", 100)] == ["x" * 5000, "y"]  # type: ignore[union-attr]


@pytest.mark.parametrize("broken", [b"{", b'{"type":"unknown"}', b'{"type":"metrics"}', b"\xff\xfe", b"a\rb"])
def test_a_broken_line_is_reported_in_its_place(tmp_path: Path, broken: bytes) -> None:
    path = tmp_path / "spool.jsonl"
    before, after = (spool.encode(Phase(phase=phase)) for phase in ("before", "after"))
    path.write_bytes(before + broken + b"\n" + after)
    first, problem, last = read_all(path)
    assert isinstance(first, Phase) and first.phase == "before"
    assert isinstance(problem, Problem) and f"byte {len(before)}" in problem.message
    assert isinstance(last, Phase) and last.phase == "after"


def test_what_can_not_be_written_is_written_later(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    writer = SpoolWriter(folder / "spool.jsonl")
    writer.append(Phase(phase="one"))
    folder.mkdir()
    writer.append(Phase(phase="two"))
    assert [record.phase for record in read_all(folder / "spool.jsonl")] == ["one", "two"]  # type: ignore[union-attr]


def test_what_is_given_up_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "PENDING_LINES", 2)
    folder = tmp_path / "gone"
    writer = SpoolWriter(folder / "spool.jsonl")
    for phase in ("one", "two", "three"):
        writer.append(Phase(phase=phase))
    writer.append(Metrics(step=1, values={"no number": object()}))  # type: ignore[dict-item]
    folder.mkdir()
    writer.append(Phase(phase="four"))
    problem, *kept = read_all(folder / "spool.jsonl")
    assert isinstance(problem, Problem) and problem.message.startswith("2 records")
    assert [record.phase for record in kept] == ["two", "three", "four"]  # type: ignore[union-attr]


def test_a_torn_write_costs_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up takes half a line; the record is written again on a line of its own."""
    path = tmp_path / "spool.jsonl"
    writer = SpoolWriter(path)
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[: len(data) // 2]))
    writer.append(Phase(phase="one"))
    monkeypatch.setattr(os, "write", write)
    writer.append(Phase(phase="two"))
    problem, one, two = read_all(path)
    assert isinstance(problem, Problem) and "broken line" in problem.message
    assert isinstance(one, Phase) and one.phase == "one"
    assert isinstance(two, Phase) and two.phase == "two"


def test_two_writers_of_one_file_do_not_tear_each_other(tmp_path: Path) -> None:
    writers = [SpoolWriter(tmp_path / "spool.jsonl") for _ in range(2)]
    for step in range(100):
        writers[step % 2].append(Metrics(step=step, values={"x": float(step)}))
    assert [record.step for record in read_all(tmp_path / "spool.jsonl")] == list(range(100))  # type: ignore[union-attr]
