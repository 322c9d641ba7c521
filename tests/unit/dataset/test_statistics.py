from __future__ import annotations

import math
import statistics as stdlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.dataset.datasets.statistics import Collector, Duplicates, Histogram, Lengths, _middle
from services.dataset.formats import formats
from services.dataset.reading.rows import Message, MessagesRow, PreferenceRow, PromptRow, Row, encode

QUESTION = Message("user", "1")
VALUES = st.lists(st.integers(0, 300) | st.integers(0, 1 << 24), min_size=1, max_size=60)


@given(VALUES, st.integers(1, 7))
def test_histogram(values: list[int], cut: int) -> None:
    histogram = Histogram()
    for start in range(0, len(values), cut):
        histogram.add(values[start : start + cut])
        histogram.settle()
    lengths = histogram.lengths()
    assert (lengths.minimum, lengths.maximum) == (min(values), max(values))
    assert lengths.mean == pytest.approx(stdlib.mean(values))
    for share, found in ((0.5, lengths.p50), (0.95, lengths.p95)):
        true = sorted(values)[math.ceil(share * len(values)) - 1]
        assert abs(found - true) <= true / 256 + 0.5
        assert found == true or true >= 256


@given(st.integers(0, 1 << 40))
def test_buckets_hold_what_falls_into_them(value: int) -> None:
    histogram = Histogram()
    histogram.add([value])
    histogram.settle()
    (bucket,) = histogram._buckets
    assert abs(_middle(bucket) - value) <= value / 256


def test_empty() -> None:
    assert Histogram().lengths() == Lengths()
    assert Collector(list).result().share_with_system == 0


@given(st.lists(st.lists(st.sampled_from([b"a", b"b", b"c", b"d", b"e"]), max_size=8), max_size=6))
def test_duplicates_are_counted_exactly(batches: list[list[bytes]]) -> None:
    duplicates = Duplicates()
    for batch in batches:
        duplicates.add(batch)
    rows = [row for batch in batches for row in batch]
    assert (duplicates.count, duplicates.exact) == (len(rows) - len(set(rows)), True)


def test_duplicates_beyond_capacity_are_estimated_in_bounded_memory() -> None:
    duplicates = Duplicates(capacity=2000)
    rows = [str(n).encode() for n in range(40_000)]
    for start in range(0, len(rows), 100):
        duplicates.add(rows[start : start + 100])
        assert len(duplicates._seen) <= 2000
    assert (duplicates.count, duplicates.exact) == (0, False)
    duplicates.add(rows[:20_000])
    # Some 1,250 of the 20,000 are sampled: a standard deviation is 3 % of the estimate.
    assert duplicates.count == pytest.approx(20_000, rel=0.3)


def test_repeats_are_thinned_with_the_hashes() -> None:
    duplicates = Duplicates(capacity=2000)
    duplicates.add([str(n).encode() for n in range(1000)] * 2)
    assert duplicates.count == 1000
    for start in range(0, 40_000, 100):
        duplicates.add([str(n).encode() for n in range(1000 + start, 1100 + start)])
    assert 100 < duplicates.count < 3000


def test_collector() -> None:
    user, system = Message("user", "12345"), Message("system", "é")
    rows: list[Row] = [
        MessagesRow([user, Message("assistant", "123")]),
        MessagesRow([system, user, Message("assistant", "1")]),
        MessagesRow([user, Message("assistant", "123")]),
    ]
    collector = Collector(formats.get("messages").turns)
    collector.add(rows[:1], [encode(row) for row in rows[:1]])
    collector.add(rows[1:], [encode(row) for row in rows[1:]])
    found = collector.result()
    assert (found.rows, found.messages, found.duplicates, found.duplicates_exact) == (3, 7, 1, True)
    assert {role: (of.messages, of.characters) for role, of in found.roles.items()} == {
        "assistant": (3, 7), "system": (1, 1), "user": (3, 15),
    }  # fmt: skip
    assert found.row_lengths == Lengths(7, 23 / 3, 8, 8, 8)
    assert found.roles["assistant"].lengths == Lengths(1, 7 / 3, 3, 3, 3)
    assert (found.rows_with_system, found.share_with_system, found.rows_with_answer) == (1, 1 / 3, 0)


@pytest.mark.parametrize(
    ("name", "row", "lengths"),
    [
        (
            "preference",
            PreferenceRow([Message("user", "1")], [Message("assistant", "12")], [Message("assistant", "3")]),
            4,
        ),
        ("prompt", PromptRow([Message("user", "1")], "1234"), 1),
    ],
)
def test_turns_of_each_format(name: str, row: Row, lengths: int) -> None:
    collector = Collector(formats.get(name).turns)
    collector.add([row], [b""])
    assert collector.result().row_lengths.maximum == lengths
    assert collector.result().rows_with_answer == (name == "prompt")
