"""Range headers: what is sent for which header."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.http.ranges import Span, choose, is_known

WHOLE = Span(0, 100, 100, partial=False)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-99", Span(0, 100, 100, partial=True)),
        ("bytes=10-19", Span(10, 20, 100, partial=True)),
        ("BYTES = 10 - 19", Span(10, 20, 100, partial=True)),
        ("bytes=99-", Span(99, 100, 100, partial=True)),
        ("bytes=-1", Span(99, 100, 100, partial=True)),
        ("bytes=-1000", Span(0, 100, 100, partial=True)),
        ("bytes=90-1000", Span(90, 100, 100, partial=True)),
        ("bytes=100-", None),
        ("bytes=-0", None),
        ("bytes=20-10", WHOLE),
        ("bytes=0-1,5-6", WHOLE),
        ("bytes=-", WHOLE),
        ("lines=0-1", WHOLE),
        ("bytes=a-b", WHOLE),
        ("", WHOLE),
    ],
)
def test_range_of_a_hundred_bytes(header: str, expected: Span | None) -> None:
    assert choose({"range": header}, 100, '"tag"') == expected


def test_no_header_and_no_bytes() -> None:
    assert choose({}, 0, '"tag"') == Span(0, 0, 0, partial=False)
    assert choose({"range": "bytes=0-"}, 0, '"tag"') is None


def test_range_of_other_content_sends_the_whole() -> None:
    assert choose({"range": "bytes=1-2", "if-range": '"old"'}, 100, '"tag"') == WHOLE
    assert choose({"range": "bytes=1-2", "if-range": '"tag"'}, 100, '"tag"') == Span(1, 3, 100, partial=True)


@pytest.mark.parametrize(
    ("header", "known"),
    [
        ('"tag"', True),
        ('W/"tag"', True),
        ('"a", "tag"', True),
        ("*", True),
        ('"other"', False),
        ("tag", False),
        ("", False),
    ],
)
def test_known_content(header: str, known: bool) -> None:
    assert is_known({"if-none-match": header}, '"tag"') is known


@given(st.text() | st.from_regex(r"bytes=[0-9]*-[0-9]*", fullmatch=True), st.integers(0, 1000))
def test_every_span_lies_inside(header: str, size: int) -> None:
    span = choose({"range": header}, size, '"tag"')
    assert span is None or 0 <= span.start <= span.end <= size == span.size
    assert span is None or not span.partial or span.start < span.end
