"""Exceptions as problem details."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.rpc import code_pb2

from services.gateway.http.problems import HTTP_STATUS, HttpError, problem
from services.mesh import errors
from services.mesh.errors import InvalidArgument, PlatformError, Violation


def document(raised: Exception) -> tuple[int, dict[str, Any], dict[str, str]]:
    response = problem(raised, "id")
    return response.status_code, json.loads(bytes(response.body)), dict(response.headers)


def test_every_code_of_google_rpc_has_a_status() -> None:
    assert set(HTTP_STATUS) == set(code_pb2.Code.keys()) - {"OK"}


@pytest.mark.parametrize("kind", errors.BY_CODE.values(), ids=lambda kind: kind.code)
def test_error_keeps_code_reason_message_and_metadata(kind: type[PlatformError]) -> None:
    status, body, headers = document(kind("SOME_REASON", "what is wrong", name="n", count=3))
    assert status == body["status"] == HTTP_STATUS[kind.code]
    assert (body["code"], body["reason"], body["detail"]) == (kind.code, "SOME_REASON", "what is wrong")
    assert body["metadata"] == {"name": "n", "count": "3"}
    assert (body["type"], body["request_id"], body["violations"]) == ("about:blank", "id", [])
    assert body["title"]
    assert ("retry-after" in headers) == (status in (429, 503))
    assert ("www-authenticate" in headers) == (status == 401)
    assert headers["content-type"] == "application/problem+json"


def test_violations_are_listed() -> None:
    status, body, _ = document(InvalidArgument([Violation("a.b", "x"), Violation("c", "y")]))
    assert status == 400
    assert body["violations"] == [{"field": "a.b", "description": "x"}, {"field": "c", "description": "y"}]


def test_status_and_headers_of_an_http_error_win() -> None:
    error = HttpError(405, errors.Unimplemented("METHOD_NOT_ALLOWED", "no"), {"Allow": "GET"})
    status, body, headers = document(error)
    assert (status, body["title"], headers["allow"]) == (405, "Method Not Allowed", "GET")


def test_foreign_exception_says_nothing() -> None:
    status, body, _ = document(ZeroDivisionError("secret"))
    assert (status, body["detail"], body["reason"]) == (500, "internal error", "INTERNAL")


def test_text_that_is_not_unicode_can_be_sent() -> None:
    assert document(PlatformError("R", "half \ud800"))[1]["detail"] == "half ?"
