"""Who gets in: token, host, origin; limits; probes; what a hostile client meets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

TOKEN = "the-token-of-the-test"
DATASET = "/v1/projects/p/datasets/d"
ROUTES = [
    ("GET", DATASET),
    ("POST", "/v1/projects/p/datasets"),
    ("PATCH", DATASET),
    ("DELETE", DATASET),
    ("PUT", f"{DATASET}/uploads/u:write"),
    ("POST", f"{DATASET}/uploads/u:commit"),
    ("GET", f"{DATASET}/versions/1:download"),
    ("GET", "/v1/projects/p/trainingJobs/j/checkpoints/step-1:download?path=x"),
    ("GET", "/v1/nothing"),
    ("OPTIONS", DATASET),
    ("GET", "/healthz/../v1/formats"),
    ("GET", "/%2Fhealthz"),
    ("GET", "/%2Fopenapi.json"),
]


async def raw(gateway: Any, request: bytes, seconds: float = 5) -> bytes:
    """Everything that comes back on one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.http_port)
    writer.write(request)
    try:
        async with asyncio.timeout(seconds):
            return await reader.read()
    finally:
        writer.close()


@pytest.mark.parametrize(
    "authorization", ["", "Bearer", "Bearer wrong", TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer é"]
)
@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_without_the_token_nothing_answers(
    http: httpx.AsyncClient, seen: Any, method: str, path: str, authorization: str
) -> None:
    headers = {"authorization": authorization.encode(), "content-type": "application/json"}
    response = await http.request(method, path, content=b"{}", headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.json()["code"] == "UNAUTHENTICATED"
    assert not seen.requests and not seen.uploaded


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_probes_need_no_token(http: httpx.AsyncClient, path: str) -> None:
    await ready(http, 200)
    headers = {"authorization": "", "host": "10.0.0.7:8080"}
    assert (await http.get(path, headers=headers)).status_code == 200


async def ready(http: httpx.AsyncClient, status: int) -> Any:
    for _ in range(250):
        if (response := await http.get("/readyz")).status_code == status:
            return response.json()
        await asyncio.sleep(0.02)
    raise AssertionError(f"never {status}")


async def test_readyz_says_which_service_is_not_serving(http: httpx.AsyncClient, services: Any) -> None:
    assert (await ready(http, 200))["services"] == {"dataset": "SERVING", "trainer": "SERVING"}
    await services.stop()
    body = await ready(http, 503)
    assert body == {"status": "not ready", "services": {"dataset": "NOT_SERVING", "trainer": "NOT_SERVING"}}
    assert (await http.get("/healthz")).json() == {"status": "ok"}
    await services.start()
    await ready(http, 200)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "127.0.0.1", "127.8.8.8:1", "[::1]:80"])
async def test_loopback_names_are_served(http: httpx.AsyncClient, host: str) -> None:
    assert (await http.get(DATASET, headers={"host": host})).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "192.168.1.1", "", "[", "localhost@evil.example"]
)
async def test_other_hosts_are_refused(http: httpx.AsyncClient, seen: Any, host: str) -> None:
    response = await http.get(DATASET, headers={"host": host})
    assert (response.status_code, response.json()["reason"]) == (403, "HOST_NOT_ALLOWED")
    assert not seen.requests


async def test_setting_adds_hosts(start_gateway: Any, http: httpx.AsyncClient) -> None:
    gateway = await start_gateway(RLHF_GATEWAY_ALLOWED_HOSTS="Box.example, other.example")
    url = f"http://127.0.0.1:{gateway.http_port}{DATASET}"
    assert (await http.get(url, headers={"host": "box.example:8080"})).status_code == 200
    assert (await http.get(url, headers={"host": "evil.example"})).status_code == 403


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:1", "https://127.0.0.1"])
async def test_pages_of_another_origin_are_refused(http: httpx.AsyncClient, seen: Any, origin: str) -> None:
    for method in ("GET", "OPTIONS", "DELETE"):
        response = await http.request(method, DATASET, headers={"origin": origin})
        assert (response.status_code, response.json()["reason"]) == (403, "ORIGIN_NOT_ALLOWED")
        assert not [name for name in response.headers if name.startswith("access-control-")]
    assert not seen.requests


async def test_own_origin_is_served(http: httpx.AsyncClient, gateway: Any) -> None:
    headers = {"origin": f"http://127.0.0.1:{gateway.http_port}"}
    assert (await http.get(DATASET, headers=headers)).status_code == 200


async def test_requests_over_the_limit_are_turned_away_and_others_served(
    start_gateway: Any, http: httpx.AsyncClient
) -> None:
    gateway = await start_gateway(RLHF_GATEWAY_MAX_CONCURRENT_REQUESTS="5")
    base = f"http://127.0.0.1:{gateway.http_port}"
    slow = [asyncio.create_task(http.get(f"{base}{DATASET[:-1]}slow")) for _ in range(5)]
    await asyncio.sleep(0.5)
    response = await http.get(f"{base}{DATASET}")
    assert (response.status_code, response.json()["reason"]) == (503, "TOO_MANY_REQUESTS")
    assert response.headers["retry-after"] == "1"
    for task in slow:
        task.cancel()
    await asyncio.sleep(0.3)
    assert (await http.get(f"{base}{DATASET}")).status_code == 200


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"\x16\x03\x01\x00\x00",
    ],
    ids=["header", "path", "no host", "two hosts", "smuggling", "length", "tls"],
)
async def test_malformed_http_is_turned_away(gateway: Any, request_: bytes) -> None:
    answer = await raw(gateway, request_ + b"\r\n\r\n")
    assert answer[9:10] in (b"4", b"")


async def test_refusal_reaches_a_client_that_sends_a_large_body(http: httpx.AsyncClient) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(50):
            yield b"x" * 1024 * 1024

    response = await http.put(f"{DATASET}/uploads/u:write", content=endless(), headers={"authorization": "Bearer no"})
    assert response.status_code == 401


async def test_expect_continue_is_answered_before_the_body(gateway: Any, seen: Any) -> None:
    head = f"PUT {DATASET}/uploads/u:write HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nExpect: 100-continue\r\n"
    refused = await raw(gateway, f"{head}Authorization: Bearer no\r\n\r\n".encode())
    assert refused.startswith(b"HTTP/1.1 401")
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.http_port)
    writer.write(f"{head}Authorization: Bearer {TOKEN}\r\n\r\n".encode())
    async with asyncio.timeout(5):
        assert (await reader.readline()).startswith(b"HTTP/1.1 100")
        writer.write(b"hello")
        await reader.readline()
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    writer.close()
    assert bytes(seen.uploaded) == b"hello"


async def test_connection_is_kept_for_the_next_request(gateway: Any) -> None:
    head = f"Host: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
    two = f"GET {DATASET} HTTP/1.1\r\n{head}\r\nGET {DATASET} HTTP/1.1\r\n{head}Connection: close\r\n\r\n"
    answer = await raw(gateway, two.encode())
    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert b"server:" not in answer.lower()


async def test_same_answer_for_a_wrong_token_and_a_wrong_route(http: httpx.AsyncClient) -> None:
    headers = {"authorization": "Bearer no"}
    answers = [(await http.get(path, headers=headers)).json() for path in (DATASET, "/v1/nothing")]
    for answer in answers:
        del answer["request_id"]
    assert json.dumps(answers[0]) == json.dumps(answers[1])
