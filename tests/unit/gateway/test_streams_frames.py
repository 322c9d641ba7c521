"""How messages stand in a body, and which form a client gets."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.streams.http_body import Events, Lines, frames, one_line

ANY_JSON = st.recursive(
    st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)


@given(ANY_JSON, st.sampled_from([None, 2]))
def test_whatever_is_in_it_a_message_stays_on_one_line(content: object, indent: int | None) -> None:
    raw = json.dumps(content, ensure_ascii=False, indent=indent).encode(errors="surrogatepass")
    line = one_line(raw)
    assert len(line.decode(errors="surrogatepass").splitlines()) == 1
    assert json.loads(line) == content


@given(ANY_JSON, st.none() | st.integers(0, 2**63 - 1))
def test_an_event_is_read_as_it_was_written(content: object, cursor: int | None) -> None:
    raw = json.dumps(content, ensure_ascii=False).encode(errors="surrogatepass")
    event = Events().message(raw, cursor)
    *fields, empty, rest = event.split(b"\n")
    assert (empty, rest) == (b"", b""), "a blank line ends it"
    *ids, data = fields
    assert ids == ([] if cursor is None else [b"id: %d" % cursor])
    assert json.loads(data.removeprefix(b"data: ")) == content


def test_errors_and_ends_have_their_form() -> None:
    assert Events().error(b'{"a":\n1}') == b'event: error\ndata: {"a": 1}\n\n'
    assert Events.end == b"event: end\ndata: {}\n\n"
    assert json.loads(Lines().error(b'{"a":1}')) == {"error": {"a": 1}}
    assert Lines.end == b"", "lines end with the body"


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("text/event-stream", Events),
        ("TEXT/Event-Stream; charset=utf-8", Events),
        ("application/json, text/event-stream;q=0.5", Events),
        ("text/event-stream;q=0", Lines),
        ("text/event-stream; q=0.0", Lines),
        ("text/event-stream; q=0.01", Events),
        ("", Lines),
        ("*/*", Lines),
        ("text/*", Lines),
        ("application/x-ndjson", Lines),
        ("application/text/event-stream", Lines),
    ],
)
def test_who_names_events_gets_them(accept: str, expected: type) -> None:
    assert type(frames(accept)) is expected
