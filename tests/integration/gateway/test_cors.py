"""Pages of other origins: refused unless named, and then exactly those."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from services.mesh.errors import InvalidArgument
from tests.integration.gateway.conftest import AUTHORIZATION

DATASET = "/v1/projects/p/datasets/d"
APP = "https://app.example:8443"
PREFLIGHT = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}


@pytest.fixture
async def open_http(start_gateway: Callable[..., Any]) -> AsyncIterator[httpx.AsyncClient]:
    """A client, without a token, of a gateway that lets two origins in."""
    gateway = await start_gateway(RLHF_GATEWAY_CORS_ORIGINS=f"{APP}, http://localhost:5173")
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{gateway.http_port}", trust_env=False) as client:
        yield client


def cors_headers(response: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if name.startswith("access-control-")}


async def test_off_by_default(http: httpx.AsyncClient) -> None:
    for method, more in (("GET", {}), ("OPTIONS", PREFLIGHT)):
        response = await http.request(method, DATASET, headers={"origin": APP, **more})
        assert response.status_code == 403
        assert not cors_headers(response)


async def test_named_origin_may_call_with_a_token_only(open_http: httpx.AsyncClient) -> None:
    response = await open_http.get(DATASET, headers={"origin": APP, **AUTHORIZATION})
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == APP
    assert "ETag" in response.headers["access-control-expose-headers"]
    assert "access-control-allow-credentials" not in response.headers
    assert "Origin" in response.headers["vary"]
    refused = await open_http.get(DATASET, headers={"origin": APP})
    # The page may read why.
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, APP)


async def test_preflight_needs_no_token(open_http: httpx.AsyncClient) -> None:
    response = await open_http.options(DATASET, headers={"origin": APP, **PREFLIGHT})
    assert (response.status_code, response.content) == (204, b"")
    assert response.headers["access-control-allow-origin"] == APP
    assert "PATCH" in response.headers["access-control-allow-methods"]
    allowed = response.headers["access-control-allow-headers"].lower()
    assert {"authorization", "content-type", "if-none-match", "last-event-id"} <= set(allowed.split(", "))
    assert "*" not in "".join(cors_headers(response).values())


@pytest.mark.parametrize(
    "origin",
    [
        "https://app.example",
        "http://app.example:8443",
        "https://app.example:8443.evil.example",
        "https://evil-app.example:8443",
        "https://APP.example:8443/",
        "null",
        "*",
    ],
)
async def test_any_other_origin_is_refused(open_http: httpx.AsyncClient, origin: str) -> None:
    for method, more in (("GET", {}), ("OPTIONS", PREFLIGHT)):
        response = await open_http.request(method, DATASET, headers={"origin": origin, **AUTHORIZATION, **more})
        assert response.status_code == 403
        assert not cors_headers(response)


@pytest.mark.parametrize("origin", [APP, "https://evil.example"])
async def test_websocket_of_a_page_is_held_to_the_same_origins(open_http: httpx.AsyncClient, origin: str) -> None:
    address = str(open_http.base_url.join(f"{DATASET}/uploads/u:streamEvents")).replace("http:", "ws:")
    opening = connect(address, origin=origin, additional_headers=AUTHORIZATION)  # pyright: ignore[reportArgumentType]
    if origin == APP:
        async with opening as socket:
            assert await socket.recv()
        return
    with pytest.raises(InvalidStatus) as refused:
        async with opening:
            pass
    assert refused.value.response.status_code == 403


async def test_clients_that_are_no_pages_are_served_as_before(open_http: httpx.AsyncClient) -> None:
    response = await open_http.get(DATASET, headers=AUTHORIZATION)
    assert response.status_code == 200
    assert not cors_headers(response)


@pytest.mark.parametrize("value", ["*", "app.example", "https://app.example/", "https://*.example", "file://x", "null"])
def test_setting_takes_exact_origins_only(settings: Callable[..., Any], value: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        settings(RLHF_GATEWAY_CORS_ORIGINS=f"https://fine.example {value}")
    assert [violation.field for violation in refused.value.violations] == ["RLHF_GATEWAY_CORS_ORIGINS"]
