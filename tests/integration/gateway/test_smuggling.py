"""Requests that two readers could take for different ones, and what stands behind a request that is broken."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.gateway.http import http1_protocol
from tests.integration.gateway.conftest import TOKEN
from tests.integration.gateway.test_limits import exchange, problem

HEAD = f"Host: localhost\r\nAuthorization: Bearer {TOKEN}\r\n".encode()
POST = b"POST /v1/projects/p/datasets?dataset_id=first HTTP/1.1\r\n" + HEAD + b"Content-Type: application/json\r\n"
GET = b"GET /v1/projects/p/datasets/first HTTP/1.1\r\n" + HEAD
SMUGGLED = b"GET /v1/projects/p/datasets/smuggled HTTP/1.1\r\n" + HEAD + b"\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"
AMBIGUOUS = {
    "two lengths": POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "the same length twice": POST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
    "list of lengths": POST + b"Content-Length: 2, 2\r\n\r\n{}",
    "signed length": POST + b"Content-Length: +2\r\n\r\n{}",
    "negative length": POST + b"Content-Length: -2\r\n\r\n{}",
    "hexadecimal length": POST + b"Content-Length: 0x2\r\n\r\n{}",
    "empty length": POST + b"Content-Length:\r\n\r\n{}",
    "length over 64 bits": POST + b"Content-Length: 18446744073709551618\r\n\r\n{}",
    "length, then chunks": POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n" + END,
    "chunks, then length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n" + END,
    "chunks twice": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n" + END,
    "another coding": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + END,
    "another coding last": POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n" + END,
    "no coding": POST + b"Transfer-Encoding: identity\r\n\r\n",
    "unknown coding": POST + b"Transfer-Encoding: xchunked\r\n\r\n" + END,
    "coding after a vertical tab": POST + b"Transfer-Encoding:\x0bchunked\r\n\r\n" + END,
    "chunks in HTTP/1.0": CHUNKED.replace(b"HTTP/1.1", b"HTTP/1.0") + END,
    "chunk size that is no number": CHUNKED + b"zz\r\n{}\r\n" + END,
    "negative chunk size": CHUNKED + b"-2\r\n{}\r\n" + END,
    "prefixed chunk size": CHUNKED + b"0x2\r\n{}\r\n" + END,
    "chunk size over 64 bits": CHUNKED + b"10000000000000002\r\n{}\r\n" + END,
    "chunk longer than its size": CHUNKED + b"2\r\n{}}\r\n" + END,
    "chunk size ended by a line feed": CHUNKED + b"2\n{}\r\n" + END,
    "chunk extension ended by a line feed": CHUNKED + b"2;a\n{}\r\n" + END,
    "folded line": GET + b"X: 1\r\n folded\r\n\r\n",
    "folded first line": b"GET / HTTP/1.1\r\n Host: localhost\r\n\r\n",
    "space before the colon": POST + b"Content-Length : 2\r\n\r\n{}",
    "tab before the colon": POST + b"Transfer-Encoding\t: chunked\r\n\r\n" + END,
    "NUL in a value": GET + b"X: a\0b\r\n\r\n",
    "NUL in a name": GET + b"X\0: a\r\n\r\n",
    "carriage return in a value": GET + b"X: a\rY: b\r\n\r\n",
    "line feed alone": GET + b"X: a\nY: b\r\n\r\n",
    "no name": GET + b": a\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": GET + b"Host: localhost\r\n\r\n",
    "two hosts in HTTP/1.0": GET.replace(b"HTTP/1.1", b"HTTP/1.0") + b"Host: localhost\r\n\r\n",
    "HTTP/2.0": GET.replace(b"HTTP/1.1", b"HTTP/2.0") + b"\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "proxying": b"CONNECT localhost:22 HTTP/1.1\r\n" + HEAD + b"\r\n",
}


def answers(received: bytes) -> list[int]:
    """The statuses of what came back, each with all its bytes."""
    found: list[int] = []
    while received:
        head, _, received = received.partition(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        found.append(int(lines[0].split()[1]))
        length = next(int(line.partition(b":")[2]) for line in lines if line.startswith(b"content-length:"))
        assert len(received) >= length
        received = received[length:]
    return found


@pytest.mark.parametrize("sent", AMBIGUOUS.values(), ids=AMBIGUOUS)
async def test_what_is_ambiguous_is_refused_with_all_that_follows(gateway: Any, seen: Any, sent: bytes) -> None:
    received = await exchange(gateway, sent + SMUGGLED)
    assert problem(received, 400)["reason"] == "MALFORMED_HTTP"
    assert answers(received) == [400]
    assert seen.requests == []


@pytest.mark.parametrize("sent", AMBIGUOUS.values(), ids=AMBIGUOUS)
async def test_answers_before_what_is_ambiguous_still_come(gateway: Any, seen: Any, sent: bytes) -> None:
    received = await exchange(gateway, GET + b"\r\n" + sent + SMUGGLED)
    assert answers(received) == [200]
    assert b"\r\nconnection: close\r\n" in received.lower()
    assert [request.name for request in seen.requests] == ["projects/p/datasets/first"]


async def test_requests_in_one_piece_and_byte_by_byte_are_the_same(gateway: Any, seen: Any) -> None:
    sent = CHUNKED + b"2;ext=1\r\n{}\r\n" + END + GET + b"Connection: close\r\n\r\n"
    assert answers(await exchange(gateway, sent)) == [200, 200]
    assert answers(await exchange(gateway, sent, piece_bytes=1)) == [200, 200]
    assert seen.requests[:2] == seen.requests[2:]


async def test_trailers_are_no_headers(gateway: Any, seen: Any) -> None:
    sent = CHUNKED.replace(f"Authorization: Bearer {TOKEN}\r\n".encode(), b"") + b"2\r\n{}\r\n0\r\n"
    refused = await exchange(gateway, sent + f"Authorization: Bearer {TOKEN}\r\n\r\n".encode())
    assert answers(refused) == [401]
    assert seen.requests == []


@pytest.mark.parametrize("piece", [b"X: " + b"a" * 200_000, b"X: a\r\n" * 20_000], ids=["one", "many"])
@pytest.mark.parametrize("piece_bytes", [1000, 1_000_000])
async def test_trailers_are_limited(gateway: Any, piece: bytes, piece_bytes: int) -> None:
    sent = CHUNKED + b"2\r\n{}\r\n0\r\n" + piece
    # Who goes on sending after the answer may lose it, as the connection is closed under it.
    received = await exchange(gateway, sent, piece_bytes=piece_bytes)
    assert not received or problem(received, 431)


async def test_chunk_extensions_are_limited(gateway: Any) -> None:
    sent = CHUNKED + b"2;" + b"e" * 200_000
    assert problem(await exchange(gateway, sent), 431)


async def test_limit_is_of_each_head(gateway: Any) -> None:
    large = GET + b"X: " + b"a" * (http1_protocol.MAX_HEAD_BYTES - 1000) + b"\r\n"
    sent = (large + b"\r\n") * 3 + large + b"Connection: close\r\n\r\n"
    assert answers(await exchange(gateway, sent)) == [200] * 4


@pytest.mark.parametrize(
    "body", [b"Content-Length: 2\r\n\r\n{}", b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n" + END]
)
@pytest.mark.parametrize("piece_bytes", [1, 1_000_000])
async def test_offer_of_another_protocol_is_passed_over(gateway: Any, seen: Any, body: bytes, piece_bytes: int) -> None:
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n"
    sent = POST + offer + body + GET + b"Connection: close\r\n\r\n"
    assert answers(await exchange(gateway, sent, piece_bytes=piece_bytes)) == [200, 200]
    assert len(seen.requests) == 2


async def test_a_websocket_does_not_overtake_an_answer(gateway: Any, seen: Any) -> None:
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: "
    socket = b"GET /v1/projects/p/trainingJobs/j:streamEvents HTTP/1.1\r\n" + HEAD + upgrade + b"A" * 22 + b"==\r\n\r\n"
    assert answers(await exchange(gateway, GET + b"\r\n" + socket)) == [200]


async def test_spaces_around_a_value_are_not_of_it(gateway: Any, seen: Any) -> None:
    sent = (
        POST.replace(TOKEN.encode(), TOKEN.encode() + b" \t ") + b"Content-Length:\t2 \r\nConnection: close \r\n\r\n{}"
    )
    received = await exchange(gateway, sent)
    assert answers(received) == [200]
    assert json.loads(received.partition(b"\r\n\r\n")[2])["name"] == "projects/p/datasets/first"
