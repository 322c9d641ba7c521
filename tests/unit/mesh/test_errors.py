"""An error crosses the wire whole, within what fits a header, and an unknown one says nothing of its inside."""

from __future__ import annotations

import pytest
from google.rpc import code_pb2
from hypothesis import given
from hypothesis import strategies as st

from services.mesh.errors import BY_CODE, InvalidArgument, NotFound, PlatformError, Violation
from services.mesh.rpc import client
from services.mesh.rpc.interceptors import to_status

# What a client accepts by default for all headers of an answer.
HEADERS_BYTES = 8192
text = st.text(st.characters(codec="utf-8"))


def over_the_wire(error: BaseException) -> PlatformError:
    status = to_status(error)
    return client.from_status(code_pb2.Code.Name(status.code), "", status.SerializeToString())


@pytest.mark.parametrize("kind", BY_CODE.values(), ids=lambda kind: kind.__name__)
def test_each_error_comes_back_as_itself(kind: type[PlatformError]) -> None:
    error = over_the_wire(kind("A_REASON", "what is wrong with 7", count=7, name="projects/p"))
    assert type(error) is kind
    assert (error.reason, error.message) == ("A_REASON", "what is wrong with 7")
    assert error.metadata == {"count": "7", "name": "projects/p"}


def test_every_violation_comes_back() -> None:
    violations = tuple(Violation(f"job.params.field_{i}", f"must be more than {i}") for i in range(25))
    error = over_the_wire(InvalidArgument(violations, "INVALID_PARAMS"))
    assert isinstance(error, InvalidArgument)
    assert error.violations == violations
    assert error.reason == "INVALID_PARAMS"


@pytest.mark.parametrize("secret", [ValueError("password hunter2"), KeyError("hunter2"), BaseException("hunter2")])
def test_an_unknown_error_says_nothing_of_its_inside(secret: BaseException) -> None:
    status = to_status(secret)
    assert (status.code, status.message) == (code_pb2.INTERNAL, "internal error")
    assert b"hunter2" not in status.SerializeToString()


@given(st.lists(st.tuples(text, text), min_size=1, max_size=300), st.integers(1, 40))
def test_a_status_fits_the_headers_that_any_client_accepts(pairs: list[tuple[str, str]], times: int) -> None:
    violations = [Violation(field * times, description * times) for field, description in pairs]
    status = to_status(InvalidArgument(violations))
    in_base64 = len(status.SerializeToString()) * 4 // 3
    percent_encoded = 3 * min(400, len(status.message.encode()))
    assert in_base64 + percent_encoded < HEADERS_BYTES


def test_violations_that_do_not_fit_are_counted() -> None:
    error = over_the_wire(InvalidArgument([Violation(f"rows[{i}].content", "must be text") for i in range(500)]))
    assert isinstance(error, InvalidArgument)
    shown, (last,) = error.violations[:-1], error.violations[-1:]
    assert last == Violation("", f"and {500 - len(shown)} more")
    assert len(shown) > 50


def test_text_that_protobuf_refuses_is_no_second_error() -> None:
    assert over_the_wire(NotFound("NO_FILE", "no file \udcff", path="\udcff")).metadata == {"path": "?"}


def test_a_status_of_another_program_is_understood() -> None:
    plain = client.from_status("INVALID_ARGUMENT", "bad request", None)
    assert isinstance(plain, InvalidArgument)
    assert str(plain) == "bad request"
    assert client.from_status("UNKNOWN", "boom", None).code == "INTERNAL"
    assert client.from_status("NOT_FOUND", "gone", b"\xff\xff not a status").message == "gone"


def test_only_what_may_pass_by_itself_is_transient() -> None:
    transient = {code for code, kind in BY_CODE.items() if client.is_transient(kind("R", "m"))}
    assert transient == {"UNAVAILABLE", "DEADLINE_EXCEEDED"}


def test_a_violation_seen_from_further_out() -> None:
    assert Violation("rate", "d").under("job.params") == Violation("job.params.rate", "d")
    assert Violation("", "d").under("job") == Violation("job", "d")
