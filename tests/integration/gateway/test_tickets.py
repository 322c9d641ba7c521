"""Tickets over real connections: what a browser opens without headers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from tests.integration.gateway.conftest import AUTHORIZATION
from tests.integration.gateway.streaming_trainer import JOB
from tests.integration.gateway.test_streams_websocket import opening, received, refusal

DOWNLOAD = f"{JOB}/j/checkpoints/step-1:download?path=model.safetensors"
STREAM = f"{JOB}/j:streamMetrics?after_ordinal=4"


async def ticket(http: httpx.AsyncClient, path: str) -> str:
    response = await http.post("/v1/tickets", json={"path": path})
    assert response.status_code == 200, response.text
    expires = datetime.fromisoformat(response.json()["expireTime"])
    assert timedelta(0) < expires - datetime.now(UTC) <= timedelta(seconds=60)
    return response.json()["ticket"]


@pytest.fixture
async def stranger(gateway: Any) -> Any:
    """A client without the token."""
    base = f"http://127.0.0.1:{gateway.http_port}"
    async with httpx.AsyncClient(base_url=base, timeout=20, trust_env=False) as client:
        yield client


async def test_a_download_opens_with_its_ticket(
    http: httpx.AsyncClient, stranger: httpx.AsyncClient, seen: Any
) -> None:
    made = await ticket(http, DOWNLOAD)
    assert (await stranger.get(DOWNLOAD)).status_code == 401
    response = await stranger.get(f"{DOWNLOAD}&ticket={made}")
    assert (response.status_code, len(response.content)) == (200, 3_000_000)
    assert seen.metadata[-1]["authorization"] == AUTHORIZATION["authorization"], "the services know who it is"


async def test_a_websocket_opens_with_its_ticket_and_takes_commands(gateway: Any, http: httpx.AsyncClient) -> None:
    made = await ticket(http, STREAM)
    async with opening(gateway, f"{STREAM}&ticket={made}", {}) as client:
        assert (await received(client))["lastOrdinal"] == "5"
    status, problem = await refusal(gateway, f"{JOB}/other:streamMetrics?after_ordinal=4&ticket={made}", {})
    assert (status, problem["reason"]) == (401, "WRONG_TICKET")


async def test_a_ticket_opens_no_other_path_method_or_query(
    http: httpx.AsyncClient, stranger: httpx.AsyncClient, seen: Any
) -> None:
    made = await ticket(http, "/v1/projects/p/datasets/d")
    assert (await stranger.get(f"/v1/projects/p/datasets/d?ticket={made}")).status_code == 200
    before = len(seen.requests)
    for method, path in (
        ("GET", "/v1/projects/p/datasets/e"),
        ("GET", "/v1/projects/p/datasets"),
        ("GET", "/v1/projects/p/datasets/%64"),
        ("HEAD", "/v1/projects/p/datasets/d"),
        ("DELETE", "/v1/projects/p/datasets/d"),
        ("PATCH", "/v1/projects/p/datasets/d"),
        ("POST", "/v1/tickets"),
    ):
        response = await stranger.request(method, path, params={"ticket": made})
        assert response.status_code == 401, (method, path)
    assert (await stranger.get(f"/v1/projects/p/datasets/d?page_size=1&ticket={made}")).status_code == 401
    assert (await stranger.get(f"/v1/projects/p/datasets/d?ticket={made}&ticket={made}")).status_code == 401
    assert len(seen.requests) == before


async def test_a_ticket_is_not_stronger_than_the_other_checks(gateway: Any, http: httpx.AsyncClient) -> None:
    made = await ticket(http, STREAM)
    status, problem = await refusal(gateway, f"{STREAM}&ticket={made}", {"origin": "https://elsewhere.example"})
    assert (status, problem["reason"]) == (403, "ORIGIN_NOT_ALLOWED")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "path"),
        ({"path": 1}, "path"),
        ({"path": "/healthz"}, "path"),
        ({"path": "/v1/x", "ttl": 1}, "ttl"),
        ([], "body"),
    ],
)
async def test_a_wrong_wish_is_told(http: httpx.AsyncClient, body: Any, field: str) -> None:
    response = await http.post("/v1/tickets", json=body)
    assert response.status_code == 400
    assert field in {violation["field"] for violation in response.json()["violations"]}


async def test_only_the_tokens_holder_gets_tickets(stranger: httpx.AsyncClient) -> None:
    assert (await stranger.post("/v1/tickets", json={"path": "/v1/x"})).status_code == 401
