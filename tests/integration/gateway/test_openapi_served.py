"""`/openapi.json` of a running gateway, and that what it tells of is what is routed."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest


@pytest.fixture
async def document(http: httpx.AsyncClient) -> dict[str, Any]:
    return (await http.get("/openapi.json")).json()


async def test_served_without_a_token_and_not_again_to_who_has_it(http: httpx.AsyncClient) -> None:
    response = await http.get("/openapi.json", headers={"authorization": ""})
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    assert response.json()["openapi"].startswith("3.1")
    known = {"authorization": "", "if-none-match": response.headers["etag"]}
    again = await http.get("/openapi.json", headers=known)
    assert (again.status_code, again.content) == (304, b"")


async def test_every_path_takes_the_methods_that_the_document_has(
    http: httpx.AsyncClient, document: dict[str, Any]
) -> None:
    for path, methods in document["paths"].items():
        refused = await http.request("PROPFIND", re.sub(r"\{\w+\}", "x", path))
        assert refused.status_code == 405, path
        documented = {method.upper() for method in methods} | ({"HEAD"} if "get" in methods else set())
        assert set(refused.headers["allow"].split(", ")) == documented, path
