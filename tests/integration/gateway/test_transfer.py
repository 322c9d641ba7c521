"""Uploads and downloads over HTTP: bytes, ranges, broken connections, refusals, back-pressure."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import psutil
import pytest

MIB = 1024 * 1024
BLOCK = hashlib.shake_256(b"block").digest(MIB - 17)
UPLOAD = "/v1/projects/p/datasets/d/uploads/u:write"
VERSION = "/v1/projects/p/datasets/d/versions/2:download"
CHECKPOINT = "/v1/projects/p/trainingJobs/j/checkpoints/step-10:download"
MODEL = "/v1/projects/p/models/m:download"
TOKEN = "the-token-of-the-test"


def content(start: int, end: int) -> bytes:
    return (BLOCK * (end // len(BLOCK) + 1))[start:end]


@pytest.mark.parametrize("method", ["PUT", "POST"])
@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, 5 * MIB + 3])
async def test_upload_arrives_whole(http: httpx.AsyncClient, seen: Any, method: str, size: int) -> None:
    response = await http.request(method, f"{UPLOAD}?offset_bytes=7", content=content(0, size))
    assert response.status_code == 200
    assert response.json()["receivedBytes"] == str(size)
    assert bytes(seen.uploaded) == content(0, size)
    assert (seen.requests[0].name, seen.requests[0].offset_bytes) == ("projects/p/datasets/d/uploads/u", 7)
    assert seen.metadata[0]["authorization"] == f"Bearer {TOKEN}"


async def test_upload_of_unknown_length(http: httpx.AsyncClient, seen: Any) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, 3_000_000, 70_000):
            yield content(start, min(3_000_000, start + 70_000))

    assert (await http.put(UPLOAD, content=pieces())).status_code == 200
    assert bytes(seen.uploaded) == content(0, 3_000_000)


async def test_upload_cut_in_the_middle_leaves_what_arrived(gateway: Any, seen: Any) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", gateway.http_port)
    head = (
        f"PUT {UPLOAD} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 9000000\r\n\r\n"
    )
    writer.write(head.encode() + content(0, 2_500_000))
    await writer.drain()
    await asyncio.sleep(0.5)
    writer.close()
    await asyncio.wait_for(seen.upload_ended.wait(), 5)
    assert bytes(seen.uploaded) == content(0, 2_500_000)


async def test_refused_upload_answers_before_the_body_has_been_sent(http: httpx.AsyncClient) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(300):
            yield b"x" * MIB

    response = await http.put(f"{UPLOAD}?offset_bytes=10000000", content=endless())
    assert response.status_code == 400
    assert (response.json()["code"], response.json()["reason"]) == ("OUT_OF_RANGE", "WRONG_OFFSET")
    assert response.json()["metadata"] == {"received_bytes": "0"}


async def test_slow_service_slows_the_upload_down(http: httpx.AsyncClient, seen: Any) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += MIB
            yield b"x" * MIB

    url = "/v1/projects/p/datasets/d/uploads/stalled:write"
    upload = asyncio.create_task(http.put(url, content=endless()))
    await asyncio.wait_for(seen.started.wait(), 5)
    await asyncio.sleep(1)
    assert sent < 64 * MIB
    upload.cancel()
    seen.upload_may_go_on.set()
    await asyncio.wait_for(seen.upload_ended.wait(), 5)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("offset_bytes=-1", "offset_bytes"),
        ("offset_bytes=x", "offset_bytes"),
        ("offset=1", "offset"),
        ("chunk=eA", "chunk"),
        ("name=x", "name"),
    ],
)
async def test_wrong_query_of_an_upload(http: httpx.AsyncClient, seen: Any, query: str, field: str) -> None:
    response = await http.put(f"{UPLOAD}?{query}", content=b"x")
    assert response.status_code == 400
    assert [violation["field"] for violation in response.json()["violations"]] == [field]
    assert not seen.requests


@pytest.mark.parametrize("headers", [{"content-type": "multipart/form-data; boundary=x"}, {"content-encoding": "gzip"}])
async def test_upload_that_is_not_the_bytes_themselves(http: httpx.AsyncClient, headers: dict[str, str]) -> None:
    assert (await http.put(UPLOAD, content=b"x", headers=headers)).status_code == 415


async def test_upload_to_a_service_that_is_down(http: httpx.AsyncClient, services: Any) -> None:
    await services.stop()
    response = await http.put(UPLOAD, content=content(0, 3 * MIB))
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"


async def test_download_of_a_version(http: httpx.AsyncClient) -> None:
    response = await http.get(VERSION)
    assert response.status_code == 200
    assert response.content == content(0, 10_000_000)
    assert response.headers["content-length"] == "10000000"
    assert response.headers["content-type"] == "application/x-ndjson"
    assert response.headers["etag"] == f'"{"ab" * 32}"'
    assert response.headers["content-disposition"].startswith('attachment; filename="d-2.jsonl"')


async def test_latest_is_resolved_once(http: httpx.AsyncClient, seen: Any) -> None:
    await http.get("/v1/projects/p/datasets/d/versions/latest:download", headers={"range": "bytes=0-0"})
    assert seen.requests[-1].name == "projects/p/datasets/d/versions/3"


@pytest.mark.parametrize(
    ("wanted", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=5-", 5, 10_000_000),
        ("bytes=1048570-1048600", 1048570, 1048601),
        ("bytes=-3", 9_999_997, 10_000_000),
        ("bytes=9999999-99999999", 9_999_999, 10_000_000),
    ],
)
async def test_range(http: httpx.AsyncClient, seen: Any, wanted: str, start: int, end: int) -> None:
    response = await http.get(VERSION, headers={"range": wanted})
    assert response.status_code == 206
    assert response.content == content(start, end)
    assert response.headers["content-range"] == f"bytes {start}-{end - 1}/10000000"
    offsets = [request.offset_bytes for request in seen.requests if hasattr(request, "offset_bytes")]
    assert offsets[0] == start


async def test_range_beyond_the_end_is_416(http: httpx.AsyncClient) -> None:
    response = await http.get(VERSION, headers={"range": "bytes=10000000-"})
    assert response.status_code == 416
    assert response.headers["content-range"] == "bytes */10000000"
    assert response.json()["code"] == "OUT_OF_RANGE"


async def test_known_content_is_304_and_changed_content_is_sent_whole(http: httpx.AsyncClient, seen: Any) -> None:
    etag = f'"{"ab" * 32}"'
    assert (await http.get(VERSION, headers={"if-none-match": etag})).status_code == 304
    assert (await http.get(VERSION, headers={"range": "bytes=0-9", "if-range": etag})).status_code == 206
    assert (await http.get(VERSION, headers={"range": "bytes=0-9", "if-range": '"other"'})).status_code == 200
    assert (await http.head(VERSION)).headers["content-length"] == "10000000"


@pytest.mark.parametrize("url", [CHECKPOINT, MODEL])
async def test_file_of_a_checkpoint_and_of_a_model(http: httpx.AsyncClient, seen: Any, url: str) -> None:
    response = await http.get(url, params={"path": "model.safetensors"})
    assert response.content == content(0, 3_000_000)
    assert seen.requests[-1].name == url.removeprefix("/v1/").removesuffix(":download")
    part = await http.get(url, params={"path": "model.safetensors"}, headers={"range": "bytes=7-2000000"})
    assert part.status_code == 206 and part.content == content(7, 2_000_001)
    assert (await http.get(url, params={"path": "empty"})).content == b""


async def test_file_name_cannot_break_out_of_its_header(http: httpx.AsyncClient) -> None:
    response = await http.get(CHECKPOINT, params={"path": 'deep/na"me é\n.bin'})
    assert response.content == content(0, 10)
    expected = "attachment; filename=\"na_me_.bin\"; filename*=UTF-8''na%22me%20%C3%A9.bin"
    assert response.headers["content-disposition"] == expected


@pytest.mark.parametrize(
    ("url", "status", "reason"),
    [
        (CHECKPOINT, 400, "INVALID_FIELDS"),
        (MODEL, 400, "INVALID_FIELDS"),
        (f"{MODEL}?path=other", 404, "FILE_NOT_FOUND"),
        (f"{CHECKPOINT}?path=other", 404, "FILE_NOT_FOUND"),
        (f"{CHECKPOINT}?path=../../token", 404, "FILE_NOT_FOUND"),
        (f"{CHECKPOINT}?path=empty&offset_bytes=1", 400, "INVALID_FIELDS"),
        (f"{VERSION}?x=1", 400, "INVALID_FIELDS"),
        (f"{CHECKPOINT.replace('step-10', 'step-5')}?path=model.safetensors", 400, "CHECKPOINT_CORRUPT"),
    ],
)
async def test_refused_download_has_its_own_status(http: httpx.AsyncClient, url: str, status: int, reason: str) -> None:
    response = await http.get(url)
    assert (response.status_code, response.json()["reason"]) == (status, reason)


async def test_download_that_ends_early_is_a_broken_connection_and_not_a_short_file(http: httpx.AsyncClient) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        await http.get(VERSION.replace("versions/2", "versions/9"))


async def test_client_that_goes_away_ends_the_stream(http: httpx.AsyncClient, seen: Any) -> None:
    url = f"/v1/projects/p/datasets/size-{10**10}/versions/1:download"
    async with http.stream("GET", url) as response:
        await anext(response.aiter_raw())
    await asyncio.wait_for(seen.cancelled.wait(), 5)


async def test_slow_reader_slows_the_service_down(http: httpx.AsyncClient, seen: Any) -> None:
    url = f"/v1/projects/p/datasets/size-{10**10}/versions/1:download"
    async with http.stream("GET", url) as response:
        await anext(response.aiter_raw())
        await asyncio.sleep(1)
        assert seen.sent_bytes < 64 * MIB


async def test_large_download_takes_constant_memory(http: httpx.AsyncClient) -> None:
    """400 MB through service, gateway and client in this one process."""
    size, process, received, peak = 400_000_000, psutil.Process(), 0, 0
    async with http.stream("GET", f"/v1/projects/p/datasets/size-{size}/versions/1:download") as response:
        before = process.memory_info().rss
        async for chunk in response.aiter_raw():
            received += len(chunk)
            peak = max(peak, process.memory_info().rss - before)
    assert received == size
    assert peak < 100 * MIB
