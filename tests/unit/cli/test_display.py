from __future__ import annotations

import math

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from services.cli import display


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (256_000, "256 kB"), (2_570_000, "2.6 MB"), (3.2e12, "3.2 TB")],
)
def test_sizes_are_in_decimal_units(count: float, text: str) -> None:
    assert display.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (125, "2:05"), (3725, "1:02:05"), (math.nan, "?")]
)
def test_durations(seconds: float, text: str) -> None:
    assert display.duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3.0, "3"),
        (0.00031234, "0.0003123"),
        (1e-6, "1e-06"),
        (math.nan, "NaN"),
        (-math.inf, "-∞"),
        (12345.678, "1.235e+04"),
    ],
)
def test_numbers_keep_four_digits(value: float, text: str) -> None:
    assert display.number(value) == text


@pytest.mark.parametrize(("count", "text"), [(0, ""), (950, "950"), (642_048, "642k"), (134_515_008, "135M")])
def test_weights_are_counted_as_people_say_them(count: int, text: str) -> None:
    assert display.parameters(count) == text


def test_a_time_that_was_never_set_is_empty() -> None:
    assert display.age(Timestamp()) == display.moment(Timestamp()) == display.took(Timestamp(), Timestamp()) == ""


def test_age_and_duration_count_from_now() -> None:
    start = Timestamp(seconds=1000)
    assert display.age(start, now=1000 + 3 * 3600) == "3 h ago"
    assert display.age(start, now=1001) == "now"
    assert display.took(start, Timestamp(), now=1090) == "1:30"
    assert display.took(start, Timestamp(seconds=1010), now=9999) == "10 s"


@given(st.text())
def test_nothing_that_a_job_prints_reaches_the_terminal_as_a_command(text: str) -> None:
    assert not {character for character in display.clean(text) if ord(character) < 32} - {"\n"}


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("\x1b[1;31mstep 3\x1b[0m\r", "step 3"),
        ("a\tb", "a   b"),
        ("\x1b[2Kprogress\x07", "progress"),
        ("two\nlines", "two\nlines"),
    ],
)
def test_control_sequences_are_taken_out_and_words_stay(text: str, cleaned: str) -> None:
    assert display.clean(text) == cleaned


@given(st.text(max_size=60), st.integers(4, 40))
def test_a_line_is_one_line_and_no_wider_than_asked(text: str, width: int) -> None:
    line = display.one_line(text, width)
    assert len(line) <= width
    assert "\n" not in line


def test_a_long_line_keeps_both_ends() -> None:
    assert display.one_line("abcdefghij", 5) == "ab…ij"
    assert display.one_line("a\nb") == "a⏎b"


def test_a_sparkline_shows_the_course_and_leaves_out_what_is_no_number() -> None:
    assert display.sparkline([0, math.nan, 1]) == "▁█"
    assert display.sparkline([3]) == ""
    assert len(display.sparkline(list(range(100)))) == 20
    assert set(display.sparkline([2, 2, 2])) == {"▁"}
