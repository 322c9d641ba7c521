"""Numbers in text: what is read, what is not, and that no text is slow or raises."""

import time
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.scoring import numeric


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("42", "42"),
        ("it is 42.", "42"),
        ("-5", "-5"),
        ("−5", "-5"),  # minus sign, not hyphen
        ("+5", "5"),
        ("$1,234,567.50", "1234567.5"),
        (".5", "0.5"),
        ("1.5e-3", "0.0015"),
        ("3/4", "0.75"),
        ("-3 / 4", "-0.75"),
        (r"\frac{3}{4}", "0.75"),
        (r"-\dfrac{1}{-2}", "0.5"),
        ("２３．５", "23.5"),
        ("7-3", "3"),  # a difference, not minus three
        ("10²", "10"),  # not 102
        ("1,2,3", "3"),
        ("1234,567", "567"),  # not thousands: the first group has four digits
        ("one", None),
        ("5/0", None),
        ("1e9999999999999999999999", None),
        ("9" * 2_000, None),
        ("", None),
    ],
)
def test_last_number(text: str, value: str | None) -> None:
    found = numeric.find(text)
    assert (found and found.value) == (value and Decimal(value))


def test_which_number() -> None:
    text = "3 apples and 4 pears"
    assert [found and found.value for found in (numeric.find(text, "first"), numeric.find(text, "last"))] == [3, 4]
    assert numeric.find(text, "only") is None
    assert numeric.find("just 3", "only") == numeric.Number(Decimal(3))


@pytest.mark.parametrize("text", ["50%", "50 %", r"50\%", "５０％"])
def test_percent(text: str) -> None:
    found = numeric.find(text)
    assert found is not None
    assert found.reading("divide") == Decimal("0.5")
    assert found.reading("ignore") == Decimal(50)


@pytest.mark.parametrize(
    ("candidate", "reference", "absolute", "relative", "expected"),
    [
        ("1", "1", 0, 0, True),
        ("1.3", "1", 0.3, 0, True),  # the float 0.3 is less than three tenths
        ("1.31", "1", 0.3, 0, False),
        ("101", "100", 0, 0.011, True),
        ("101", "100", 0, 0.009, False),
        ("-101", "-100", 0, 0.011, True),
        ("1e999999", "-1e999999", 0, 0.5, False),
        ("0", "1e-400", 0, 0.1, False),  # a float would say that both are 0
    ],
)
def test_tolerance(candidate: str, reference: str, absolute: float, relative: float, expected: bool) -> None:
    assert numeric.close(Decimal(candidate), Decimal(reference), absolute, relative) is expected


@given(st.text(st.characters(codec=None), max_size=300), st.sampled_from(["first", "last", "only"]))
def test_any_text(text: str, which: numeric.Which) -> None:
    found = numeric.find(text, which)
    assert found is None or found.value.is_finite()


@given(st.text("0123456789,.eE+-/%\\frac{} ", max_size=60))
def test_text_made_of_numbers(text: str) -> None:
    found = numeric.find(text)
    assert found is None or (found.value.is_finite() and found.reading("divide").is_finite())


@given(st.decimals(allow_nan=False, allow_infinity=False, places=6, min_value=-(10**12), max_value=10**12))
def test_a_formatted_number_is_read_back(value: Decimal) -> None:
    for written in (f"{value:,f}", f"{value:f}", f"{value:e}"):
        found = numeric.find(f"so x = {written} metres")
        assert found is not None and found.value == value


@pytest.mark.parametrize(
    "unit", ["1,111", "1", "1 ", r"\frac{", "-", "1/", "1e", "1,", ",111", ".", r"\frac{1}{", "%", "1,111,"]
)
def test_time_is_linear(unit: str) -> None:
    def seconds(times: int) -> float:
        started = time.process_time()
        numeric.find(unit * times)
        return time.process_time() - started

    seconds(1_000)
    # 16 times the text in at most 64 times the time; a quadratic scan takes 256 times as long.
    assert seconds(80_000) < 64 * max(seconds(5_000), 0.002)
