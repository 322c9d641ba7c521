"""Tickets: what opens what, and for how long."""

from __future__ import annotations

from typing import Any

import pytest

from services.gateway.security import tickets
from services.gateway.security.tickets import Tickets
from services.mesh.errors import InvalidArgument, Unauthenticated

PATH = "/v1/projects/p/trainingJobs/j:streamEvents?after_sequence=3&a=%2F"


class Clock:
    now = 1_800_000_000.25

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def issued(clock: Clock) -> Tickets:
    return Tickets("token", clock)


def refused(issued: Tickets, ticket: str, path: str = PATH) -> str:
    with pytest.raises(Unauthenticated) as caught:
        issued.check(ticket, path)
    return caught.value.reason


def test_a_ticket_opens_its_path_for_a_minute(issued: Tickets, clock: Clock) -> None:
    ticket, expires = issued.issue(PATH)
    assert expires == clock.now + 60
    issued.check(ticket, PATH)
    clock.now += 59.99
    issued.check(ticket, PATH)
    clock.now += 0.01
    assert refused(issued, ticket) == "TICKET_EXPIRED"


@pytest.mark.parametrize(
    "path",
    [
        "/v1/projects/p/trainingJobs/j:streamEvents",
        "/v1/projects/p/trainingJobs/j:streamEvents?after_sequence=3",
        "/v1/projects/p/trainingJobs/j:streamEvents?a=%2F&after_sequence=3",
        "/v1/projects/p/trainingJobs/j:streamEvents?after_sequence=3&a=/",
        "/v1/projects/p/trainingJobs/other:streamEvents?after_sequence=3&a=%2F",
        PATH + "&",
        "",
    ],
)
def test_it_opens_nothing_else(issued: Tickets, path: str) -> None:
    assert refused(issued, issued.issue(PATH)[0], path) == "WRONG_TICKET"


def test_every_change_of_a_ticket_is_seen(issued: Tickets) -> None:
    ticket, _ = issued.issue(PATH)
    for place, character in enumerate(ticket):
        for other in "0", "1", "A", "B", ".", "":
            if other != character:
                # The last character holds two bits that mean nothing; compared as text, they count too.
                assert refused(issued, ticket[:place] + other + ticket[place + 1 :]) == "WRONG_TICKET"
    milliseconds, _, signature = ticket.partition(".")
    assert refused(issued, f"{int(milliseconds) + 60_000}.{signature}") == "WRONG_TICKET", "no longer life"
    assert refused(issued, f"0{ticket}"[: len(ticket)]) == "WRONG_TICKET"
    assert refused(issued, "١" * 13 + "." + signature) == "WRONG_TICKET"


def test_another_token_makes_other_tickets(issued: Tickets, clock: Clock) -> None:
    assert refused(Tickets("another", clock), issued.issue(PATH)[0]) == "WRONG_TICKET"


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/healthz",
        "v1/x",
        "//v1/x",
        "/v1/",
        "/v1/a b",
        "/v1/é",
        "/v1/a\n",
        "/v1/a#b",
        "/v1/" + "x" * 5000,
        "/v1/a?ticket=1",
        "/v1/a?b=1&ticket=2",
    ],
)
def test_what_cannot_be_opened_gets_no_ticket(issued: Tickets, path: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        issued.issue(path)
    assert {violation.field for violation in caught.value.violations} == {"path"}


@pytest.mark.parametrize(
    ("query", "ticket", "rest"),
    [
        (b"", "", b""),
        (b"a=1", "", b"a=1"),
        (b"ticket=x", "x", b""),
        (b"a=1&ticket=x&b=2", "x", b"a=1&b=2"),
        (b"ticket=x&a=%26ticket%3Dy", "x", b"a=%26ticket%3Dy"),
        (b"my_ticket=x", "", b"my_ticket=x"),
    ],
)
def test_the_ticket_is_taken_out_of_the_query(query: bytes, ticket: str, rest: bytes) -> None:
    scope: dict[str, Any] = {"type": "websocket", "query_string": query}
    assert tickets.take(scope) == ticket
    assert scope["query_string"] == rest


def test_two_tickets_are_none() -> None:
    with pytest.raises(Unauthenticated):
        tickets.take({"type": "http", "method": "GET", "query_string": b"ticket=a&ticket=b"})


@pytest.mark.parametrize("method", ["POST", "HEAD", "DELETE", "PUT", "OPTIONS"])
def test_a_ticket_is_for_get_only(method: str) -> None:
    scope = {"type": "http", "method": method, "query_string": b"ticket=a"}
    assert tickets.take(scope) == ""
