"""Keyset pages: sizes, tokens, and that walking the pages gives every row once while rows come and go."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.mesh.errors import InvalidArgument
from services.mesh.rpc.pagination import PageRequest


@pytest.mark.parametrize(("asked", "given_"), [(0, 50), (1, 1), (1000, 1000), (1001, 1000), (2**31 - 1, 1000)])
def test_size(asked: int, given_: int) -> None:
    assert PageRequest.parse(asked, "").size == given_


def test_a_negative_size_is_refused() -> None:
    with pytest.raises(InvalidArgument) as caught:
        PageRequest.parse(-1, "")
    assert caught.value.violations[0].field == "page_size"


@given(st.lists(st.integers(-(2**63), 2**63) | st.text(st.characters(codec="utf-8")), min_size=1, max_size=3))
def test_a_token_is_read_back(key: list[int | str]) -> None:
    token = PageRequest.parse(10, "", "parent", ["RUNNING"]).token(tuple(key))
    assert PageRequest.parse(10, token, "parent", ["RUNNING"]).after == tuple(key)


@pytest.mark.parametrize("filters", [("other", ["RUNNING"]), ("parent", []), ("parent",), ("parent", ["RUNNING"], 1)])
def test_a_token_of_another_list_is_refused(filters: tuple[object, ...]) -> None:
    token = PageRequest.parse(10, "", "parent", ["RUNNING"]).token(("x",))
    with pytest.raises(InvalidArgument, match="other filters") as caught:
        PageRequest.parse(10, token, *filters)
    assert caught.value.violations[0].field == "page_token"


def test_filters_without_an_order_count_without_an_order() -> None:
    token = PageRequest.parse(1, "", {"b", "a", "c"}).token(("x",))
    assert PageRequest.parse(1, token, {"c", "b", "a"}).after == ("x",)


def test_a_filter_that_differs_from_process_to_process_is_a_mistake() -> None:
    with pytest.raises(TypeError):
        PageRequest.parse(1, "", object())


def forged(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode()


HASH = PageRequest.parse(1, "").filter_hash


NO_KEYS = (1, {}, [], "abc", [HASH], [HASH, True], [HASH, 1.5], [HASH, [1]], [HASH, None])
TOO_DEEP = base64.urlsafe_b64encode(b"[" * 100_000).decode()


@pytest.mark.parametrize("token", ["x", "é", "====", *map(forged, NO_KEYS), TOO_DEEP], ids=lambda token: token[:9])
def test_a_foreign_token_is_refused(token: str) -> None:
    with pytest.raises(InvalidArgument):
        PageRequest.parse(1, token)


@given(st.text())
def test_any_text_is_a_token_or_refused(token: str) -> None:
    try:
        PageRequest.parse(1, token)
    except InvalidArgument as error:
        assert error.violations[0].field == "page_token"
    else:
        assert token == ""


@given(
    st.sets(st.integers(0, 1000)),
    st.integers(1, 7),
    st.lists(st.tuples(st.booleans(), st.integers(0, 1000)), max_size=60),
)
def test_a_walk_gives_every_row_that_stays_once(first: set[int], size: int, changes: list[tuple[bool, int]]) -> None:
    """Newest first, as our lists are. `changes`: between two pages a row is written (True) or deleted."""
    now, seen, token = set(first), [], ""
    stays = set(first)
    while True:
        page = PageRequest.parse(size, token, "parent")
        rows = sorted((row for row in now if page.after is None or row < int(page.after[0])), reverse=True)[: size + 1]
        found = page.page(rows, lambda row: (row,))
        assert len(found.items) <= size
        seen += found.items
        if not found.next_token:
            break
        token = found.next_token
        if changes:
            write, row = changes.pop()
            (now.add if write else now.discard)(row)
            stays.discard(row)
    assert len(seen) == len(set(seen))
    assert seen == sorted(seen, reverse=True)
    assert stays <= set(seen)
