"""A hostile pattern on a hostile text: refused, or linear."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.scoring import regex


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|a)*b", "(.*)*x", "(a?){60}a{60}", r"(\w+\s?)*$"])
def test_no_backtracking(pattern: str) -> None:
    """Each of these takes Python's re exponential or quadratic time on this text."""
    started = time.process_time()
    regex.match(regex.compile_pattern(pattern, False), "a" * 50_000 + "!", "fullmatch")
    assert time.process_time() - started < 2


@pytest.mark.parametrize("pattern", ["(", "(?=a)", r"(a)\1", "((a{1,100}){1,100}){1,100}", "\ud800", "a" * 1_001])
def test_refused(pattern: str) -> None:
    with pytest.raises(regex.BadPatternError):
        regex.compile_pattern(pattern, False)


def test_modes_and_groups() -> None:
    pattern = regex.compile_pattern(r"<answer>(?P<answer>.*)</answer>(?P<rest>x)?", False)
    text = "<answer>4\n2</answer>"
    assert regex.match(pattern, text, "fullmatch") == {"answer": "4\n2", "rest": ""}
    assert regex.match(pattern, f"well, {text}", "fullmatch") is None
    assert regex.match(pattern, f"well, {text}", "search") == {"answer": "4\n2", "rest": ""}


def test_case() -> None:
    assert regex.match(regex.compile_pattern("é", True), "É", "fullmatch") == {}
    assert regex.match(regex.compile_pattern("é", False), "É", "fullmatch") is None


def test_a_longer_text_does_not_match() -> None:
    pattern = regex.compile_pattern("a*", False)
    assert regex.match(pattern, "a" * regex.LONGEST_TEXT, "fullmatch") == {}
    assert regex.match(pattern, "a" * (regex.LONGEST_TEXT + 1), "fullmatch") is None


@given(st.text(st.characters(codec=None), max_size=100), st.sampled_from(["search", "fullmatch"]))
def test_any_text(text: str, mode: regex.Mode) -> None:
    assert regex.match(regex.compile_pattern("(?P<all>.*)", False), text, mode) is not None


@given(st.text("ab", max_size=12), st.sampled_from(["a*b", "(a|b)*", "a?b+a?", "^ab$", "[^a]"]))
def test_agrees_with_re(text: str, pattern: str) -> None:
    ours = regex.compile_pattern(pattern, False)
    assert (regex.match(ours, text, "search") is None) == (re.search(pattern, text) is None)
    assert (regex.match(ours, text, "fullmatch") is None) == (re.fullmatch(pattern, text) is None)


@given(st.text(max_size=40))
def test_any_pattern_compiles_or_is_refused(pattern: str) -> None:
    try:
        compiled = regex.compile_pattern(pattern, False)
    except regex.BadPatternError as error:
        assert str(error)
    else:
        regex.match(compiled, "abc", "search")
