"""Bytes that are no protocol, on the ports of the gateway: each connection ends, and the next caller is served."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2

from services.gateway.http import http1_protocol
from tests.integration.gateway.conftest import AUTHORIZATION, TOKEN

DATASET = "/v1/projects/p/datasets/d"
HEAD = f"POST {DATASET[:-2]} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
HEAD += "Content-Type: application/json\r\n"
CHUNKED = HEAD.encode() + b"Transfer-Encoding: chunked\r\n\r\n"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
# Length, type, flags, stream of a frame: RFC 9113, 4.1.
SETTINGS = b"\0\0\0\4\0\0\0\0\0"
HTTP = [
    b"",
    b"\0" * 1000,
    b"\n" * 10_000,
    b"GET\r\n\r\n",
    b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
    b"G\xc3\x89T / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET  /  HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET http://evil.example/v1 HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    b"CONNECT localhost:22 HTTP/1.1\r\nHost: localhost:22\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /%00%ff%2e%2e/%2e%2e HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\n folded: 1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\rb: c\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: 1\r\n" % number for number in range(20_000)) + b"\r\n",
    HEAD.encode() + b"Content-Length: 1e3\r\n\r\n{}",
    HEAD.encode() + b"Content-Length: 99999999999999999999\r\n\r\n{}",
    HEAD.encode() + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    HEAD.encode() + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    HEAD.encode() + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x08\x00",
    CHUNKED + b"zz\r\n{}\r\n0\r\n\r\n",
    CHUNKED + b"-1\r\n{}\r\n0\r\n\r\n",
    CHUNKED + b"ffffffffffffffffffff\r\n{}",
    CHUNKED + b"2;" + b"e" * 100_000 + b"\r\n{}\r\n0\r\n\r\n",
    CHUNKED + b"1\r\n{\r\n" * 5000 + b"0\r\n\r\n",
    CHUNKED + b"2\r\n{}0\r\n\r\n",
    PREFACE + SETTINGS,
]
GRPC = [
    b"",
    b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"\x16\x03\x01\x00\x05hello",
    PREFACE,
    PREFACE + b"\xff" * 1000,
    PREFACE + SETTINGS + b"\xff\xff\xff\0\0\0\0\0\1",
    PREFACE + SETTINGS + b"\0\0\x05\1\4\0\0\0\1\xff\xff\xff\xff\xff",
    PREFACE + SETTINGS + b"\0\0\4\3\0\0\0\0\1\0\0\0\x08" * 500,
    PREFACE + SETTINGS + b"\0\0\4\x08\0\0\0\0\0\0\0\0\0",
]


async def send(port: int, data: bytes) -> bytes:
    """Everything that comes back until the other side closes; that it does is asserted by the time limit."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    received = b""
    with contextlib.suppress(ConnectionError):
        writer.write(data)
        await writer.drain()
        writer.write_eof()
        async with asyncio.timeout(20):
            while part := await reader.read(65536):
                received += part
    writer.close()
    return received


def noise() -> list[bytes]:
    numbers = random.Random(7)
    cut = [CHUNKED[: numbers.randrange(len(CHUNKED))] for _ in range(10)]
    flipped = []
    for _ in range(20):
        data = bytearray(CHUNKED + b"2\r\n{}\r\n0\r\n\r\n")
        for _ in range(3):
            data[numbers.randrange(len(data))] = numbers.randrange(256)
        flipped.append(bytes(data))
    return [*(numbers.randbytes(numbers.randrange(1, 3000)) for _ in range(20)), *cut, *flipped]


async def test_noise_on_the_http_port(gateway: Any, http: httpx.AsyncClient) -> None:
    for data in (*HTTP, *noise()):
        answer = await send(gateway.http_port, data)
        assert not answer.startswith(b"HTTP/1.1 5"), (data[:200], answer[:200])
        assert b"Traceback" not in answer
    assert (await http.get(DATASET)).status_code == 200


async def test_noise_on_the_grpc_port(gateway: Any, channel: grpc.aio.Channel) -> None:
    for data in (*GRPC, *noise()):
        await send(gateway.port, data)
    check = channel.unary_unary(
        "/grpc.health.v1.Health/Check", response_deserializer=health_pb2.HealthCheckResponse.FromString
    )
    assert (await check(b"")).status == health_pb2.HealthCheckResponse.SERVING


async def test_who_never_finishes_a_head_is_cut_off_and_others_are_served(
    gateway: Any, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http1_protocol, "HEAD_SECONDS", 0.5)
    slow = [await asyncio.open_connection("127.0.0.1", gateway.http_port) for _ in range(100)]

    async def drip(writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while not writer.is_closing():
                writer.write(b"G")
                await writer.drain()
                await asyncio.sleep(0.1)

    dripping = [asyncio.create_task(drip(writer)) for _, writer in slow]
    assert (await http.get(DATASET, headers=AUTHORIZATION)).status_code == 200
    async with asyncio.timeout(20):
        for reader, _ in slow:
            with contextlib.suppress(ConnectionError):
                await reader.read()  # to the end: the gateway has closed it
    for task in dripping:
        task.cancel()
    for _, writer in slow:
        writer.close()
