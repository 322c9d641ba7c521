"""Where an answer stands, and what counts as the same spelling."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.scoring.text import Place, Spelling, last_boxed, locate, normalise, to_utf8

# Lone surrogates and NUL included: a detokeniser can leave both.
ANY_TEXT = st.text(st.characters(codec=None), max_size=200)


@pytest.mark.parametrize(
    ("text", "place", "expected"),
    [
        ("a\nb", "whole", "a\nb"),
        ("a\nb\n \n", "last_line", "b"),
        (" \n\t", "last_line", None),
        ("Answer: 1 Answer: 2", "after_marker", " 2"),
        ("no marker", "after_marker", None),
        (r"\boxed{1} then \boxed{2}", "boxed", "2"),
        ("no box", "boxed", None),
    ],
)
def test_place(text: str, place: Place, expected: str | None) -> None:
    assert locate(text, place, "Answer:") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\fbox {3}", "3"),
        (r"\boxed{1} \boxed{2", "1"),
        (r"\boxed{a\}b}", r"a\}b"),
        (r"{{ \boxed{4}", "4"),
        (r"}} \boxed{}", ""),
        (r"\boxed{outer \boxed{inner}}", "inner"),
        (r"\boxed{never closed", None),
    ],
)
def test_last_box(text: str, expected: str | None) -> None:
    assert last_boxed(text) == expected


@pytest.mark.parametrize("text", [r"\boxed{" * 100_000, r"\boxed{" * 50_000 + "}" * 50_000, r"\fbox" + " " * 500_000])
def test_box_is_linear(text: str) -> None:
    started = time.process_time()
    last_boxed(text)
    assert time.process_time() - started < 3


@given(ANY_TEXT)
def test_any_text_in_a_box_is_found_again(text: str) -> None:
    plain = "".join(c for c in text if c not in "{}\\")
    assert last_boxed(rf"so \boxed{{{plain}}}.") == plain


@given(ANY_TEXT, st.sampled_from(["whole", "last_line", "after_marker", "boxed"]))
def test_a_place_is_part_of_its_text(text: str, place: Place) -> None:
    found = locate(text, place, "=")
    assert found is None or found in text


@pytest.mark.parametrize(
    ("spelling", "left", "right"),
    [
        (Spelling(), " a ", "a"),
        (Spelling(case=True), "STRASSE", "straße"),
        (Spelling(spaces=True), "a \n\t b", "a b"),
        (Spelling(unicode=True), "１２", "12"),
    ],
)
def test_spelling_that_does_not_matter(spelling: Spelling, left: str, right: str) -> None:
    assert normalise(left, spelling) == normalise(right, spelling)
    assert normalise(left, Spelling(strip=False)) != normalise(right, Spelling(strip=False))


@given(ANY_TEXT)
def test_utf8_of_any_string(text: str) -> None:
    assert to_utf8(text).decode("utf-8")[:1] in (text[:1], "?")
