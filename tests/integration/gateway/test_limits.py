"""Limits on the size and the time of a request, over raw connections."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any

import pytest

from services.gateway.http import http1_protocol, request, upload
from tests.integration.gateway.conftest import TOKEN

HEAD = f"Host: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
DATASET = "/v1/projects/p/datasets/d"


async def exchange(gateway: Any, sent: bytes, piece_bytes: int = 1_000_000) -> bytes:
    """Everything that comes back until the gateway closes, when `sent` comes in pieces of this size."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.http_port)
    try:
        async with asyncio.timeout(20):
            for start in range(0, len(sent), piece_bytes):
                writer.write(sent[start : start + piece_bytes])
                await writer.drain()
                await asyncio.sleep(0)
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


def problem(answer: bytes, status: int) -> dict[str, Any]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode()), answer
    assert b"\r\ncontent-type: application/problem+json" in head.lower()
    assert b"\r\nconnection: close" in head.lower()
    document = json.loads(body)
    assert document["status"] == status
    assert f"\r\nx-request-id: {document['request_id']}".encode() in head.lower()
    return document


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 10_000 + b"\r\n",
    ],
    ids=["one header", "path", "many headers"],
)
async def test_too_large_a_head_is_431(gateway: Any, sent: bytes) -> None:
    assert problem(await exchange(gateway, sent), 431)["reason"] == "HEADERS_TOO_LARGE"


async def test_what_is_not_http_is_400(gateway: Any) -> None:
    assert problem(await exchange(gateway, b"hello\r\n\r\n"), 400)["reason"] == "MALFORMED_HTTP"


async def test_late_head_is_408_and_an_idle_connection_is_closed(gateway: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1_protocol, "HEAD_SECONDS", 0.2)
    assert problem(await exchange(gateway, f"GET {DATASET} HTTP/1.1\r\n{HEAD}".encode()), 408)
    assert await exchange(gateway, b"") == b""


async def test_late_head_of_a_second_request_is_408(gateway: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1_protocol, "HEAD_SECONDS", 0.2)
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.http_port)
    async with asyncio.timeout(20):
        writer.write(f"GET {DATASET} HTTP/1.1\r\n{HEAD}\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
        await reader.readexactly(int(length.partition(b":")[2]))
        writer.write(f"GET {DATASET} HTTP/1.1\r\n".encode())
        assert problem(await reader.read(), 408)["reason"] == "HEADERS_LATE"
    writer.close()


async def test_answer_may_take_longer_than_the_head(gateway: Any, seen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1_protocol, "HEAD_SECONDS", 0.1)
    sent = f"GET /v1/projects/p/datasets/slow HTTP/1.1\r\n{HEAD}X-Request-Timeout: 0.5\r\nConnection: close\r\n\r\n"
    assert (await exchange(gateway, sent.encode())).startswith(b"HTTP/1.1 504 ")


async def test_late_body_is_408(gateway: Any, seen: Any) -> None:
    head = f"POST /v1/projects/p/datasets HTTP/1.1\r\n{HEAD}Content-Type: application/json\r\nContent-Length: 100\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.http_port)
    writer.write(f"{head}X-Request-Timeout: 0.2\r\n\r\n{{".encode())
    async with asyncio.timeout(20):
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 408 ")
        length = next(line for line in answer.lower().split(b"\r\n") if line.startswith(b"content-length"))
        document = json.loads(await reader.readexactly(int(length.partition(b":")[2])))
    writer.close()
    assert (document["status"], document["reason"]) == (408, "BODY_LATE")
    assert seen.requests == []


@pytest.mark.parametrize(
    ("extra", "query", "status", "reason"),
    [
        ("", "?after_ordinal=" + "1" * 10_000, 431, "HEADERS_TOO_LARGE"),
        ("X: " + "a" * 10_000 + "\r\n", "", 431, "HEADERS_TOO_LARGE"),
        ("X: a\r\n" * 200, "", 431, "HEADERS_TOO_LARGE"),
        ("X(y: a\r\n", "", 400, "MALFORMED_HTTP"),
    ],
    ids=["query", "header", "many headers", "name of a header"],
)
async def test_a_handshake_that_is_none_is_answered(
    gateway: Any, extra: str, query: str, status: int, reason: str
) -> None:
    sent = f"GET /v1/projects/p/trainingJobs/j:streamMetrics{query} HTTP/1.1\r\n{HEAD}{extra}Connection: Upgrade\r\n"
    key = "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    assert problem(await exchange(gateway, (sent + key).encode()), status)["reason"] == reason


JSON = f"HTTP/1.1\r\n{HEAD}Content-Type: application/json\r\n"
UNENDED = f"POST /v1/projects/p/datasets {JSON}Content-Length: 100\r\n\r\n{{"


async def opened(gateway: Any, sent: str, client: str = "127.0.0.1") -> tuple[asyncio.StreamReader, Any]:
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.http_port, local_addr=(client, 0))
    writer.write(sent.encode())
    return reader, writer


async def test_bodies_that_never_end_shut_nobody_else_out(start_gateway: Any, seen: Any) -> None:
    gateway = await start_gateway(RLHF_GATEWAY_MAX_CONCURRENT_REQUESTS="8")
    held = [await opened(gateway, UNENDED) for _ in range(16)]
    lines = [asyncio.create_task(reader.readline()) for reader, _ in held]
    try:
        async with asyncio.timeout(20):
            ended = [await line for line in itertools.islice(asyncio.as_completed(lines), 14)]
            assert {line.split()[1] for line in ended} == {b"503"}
            whole = (
                f"POST /v1/projects/p/datasets?dataset_id=d {JSON}Content-Length: 2\r\nConnection: close\r\n\r\n{{}}"
            )
            asked = f"GET {DATASET} HTTP/1.1\r\n{HEAD}Connection: close\r\n\r\n"
            for sent in (asked, whole + "{}"):
                reader, writer = await opened(gateway, sent)
                assert (await reader.readline()).split()[1] == b"200"
                writer.close()
            # One that goes on sending keeps its place; the one that is silent had to give way.
            going_on = [(writer, task) for (_, writer), task in zip(held, lines, strict=True) if not task.done()]
            assert len(going_on) == 1
            going_on[0][0].write(b'"displayName": "x"' + b" " * 80 + b"}")
            assert (await going_on[0][1]).split()[1] == b"200"
    finally:
        for task in lines:
            task.cancel()
        for _, writer in held:
            writer.close()


async def test_strangers_who_go_on_sending_take_nobodys_place(start_gateway: Any) -> None:
    gateway = await start_gateway(RLHF_GATEWAY_MAX_CONCURRENT_REQUESTS="2")
    held = [await opened(gateway, UNENDED.replace(TOKEN, "another")) for _ in range(8)]
    async with asyncio.timeout(20):
        for reader, _ in held:
            assert (await reader.readline()).split()[1] == b"401"
        reader, writer = await opened(gateway, f"GET {DATASET} HTTP/1.1\r\n{HEAD}Connection: close\r\n\r\n")
        assert (await reader.readline()).split()[1] == b"200"
    for _, each in (*held, (reader, writer)):
        each.close()


async def test_a_body_is_there_within_a_minute_whatever_the_call_may_take(
    gateway: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request, "MAX_BODY_SECONDS", 0.2)
    reader, writer = await opened(gateway, UNENDED.replace("\r\n\r\n", "\r\nX-Request-Timeout: 3600\r\n\r\n"))
    async with asyncio.timeout(20):
        assert (await reader.readline()).split()[1] == b"408"
    writer.close()


async def test_an_upload_that_stands_still_is_408_and_what_came_is_kept(
    gateway: Any, seen: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "IDLE_SECONDS", 0.2)
    head = f"PUT {DATASET}/uploads/u:write HTTP/1.1\r\n{HEAD}Content-Length: 100\r\n\r\nhello"
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.http_port)
    writer.write(head.encode())
    async with asyncio.timeout(20):
        assert (await reader.readline()).startswith(b"HTTP/1.1 408 ")
    writer.close()
    assert bytes(seen.uploaded) == b"hello"
