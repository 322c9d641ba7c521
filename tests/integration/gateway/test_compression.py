"""gzip and zstd over a real gateway: bodies in, answers out, and what is never packed."""

from __future__ import annotations

import gzip
import json
from typing import Any

import httpx
import pytest
import zstandard
from rlhf.dataset.v1 import dataset_pb2

from services.gateway.http.request import MAX_BODY_BYTES

PARENT = "/v1/projects/p/datasets"
JSON = {"content-type": "application/json"}
PACK = {"gzip": gzip.compress, "zstd": zstandard.ZstdCompressor().compress}
UNPACK = {"gzip": gzip.decompress, "zstd": zstandard.ZstdDecompressor().decompress}


async def raw_get(http: httpx.AsyncClient, path: str, accepted: str) -> tuple[httpx.Response, bytes]:
    """The bytes as they came, not unpacked."""
    async with http.stream("GET", path, headers={"accept-encoding": accepted}) as response:
        return response, b"".join([chunk async for chunk in response.aiter_raw()])


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
async def test_packed_body_is_read(http: httpx.AsyncClient, seen: Any, coding: str) -> None:
    body = PACK[coding](json.dumps({"displayName": "é" * 3000, "format": "messages"}).encode())
    response = await http.post(f"{PARENT}?datasetId=d", content=body, headers={**JSON, "content-encoding": coding})
    assert response.status_code == 200, response.text
    assert seen.requests[-1].dataset == dataset_pb2.Dataset(
        name="projects/p/datasets/d", display_name="é" * 3000, format="messages"
    )


async def test_several_members_are_one_body(http: httpx.AsyncClient) -> None:
    for coding, pack in PACK.items():
        body = pack(b'{"format":') + pack(b'"messages"}')
        response = await http.post(PARENT, content=body, headers={**JSON, "content-encoding": coding})
        assert response.json()["format"] == "messages"


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
@pytest.mark.parametrize("over", [0, 1])
async def test_limit_is_on_what_comes_out(http: httpx.AsyncClient, seen: Any, coding: str, over: int) -> None:
    content = b'{"format":"messages"}'.ljust(MAX_BODY_BYTES + over)
    body = PACK[coding](content)
    assert len(body) < MAX_BODY_BYTES / 100
    response = await http.post(PARENT, content=body, headers={**JSON, "content-encoding": coding})
    assert response.status_code == (413 if over else 200)
    assert len(seen.requests) == (0 if over else 1)


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
async def test_bytes_that_are_not_packed_so_are_400(http: httpx.AsyncClient, coding: str) -> None:
    packed = PACK[coding](b'{"format":"messages"}' * 100)
    for body in (b"{}", packed[: len(packed) // 2], packed[:3]):
        response = await http.post(PARENT, content=body, headers={**JSON, "content-encoding": coding})
        assert response.status_code == 400
        assert [violation["field"] for violation in response.json()["violations"]] == ["body"]


async def test_a_body_of_very_many_members_is_400(http: httpx.AsyncClient) -> None:
    """Each would be a copy of the rest: a body of 4 MiB of them would take minutes."""
    for count, status in ((16, 200), (17, 400), (150_000, 400)):
        body = gzip.compress(b"", mtime=0) * (count - 1) + gzip.compress(b'{"format":"messages"}')
        response = await http.post(PARENT, content=body, headers={**JSON, "content-encoding": "gzip"})
        assert response.status_code == status


async def test_unknown_coding_is_told_what_is_known(http: httpx.AsyncClient) -> None:
    response = await http.post(PARENT, content=b"{}", headers={**JSON, "content-encoding": "br"})
    assert (response.status_code, response.headers["accept-encoding"]) == (415, "zstd, gzip")
    upload = f"{PARENT}/d/uploads/u:write"
    response = await http.put(upload, content=gzip.compress(b"x"), headers={"content-encoding": "gzip"})
    assert (response.status_code, response.headers["accept-encoding"]) == (415, "identity")


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        ("gzip, deflate, br, zstd", "zstd"),
        ("gzip, br", "gzip"),
        ("gzip;q=1.0, zstd;q=0.5", "gzip"),
        ("x-gzip", "gzip"),
        ("*", "zstd"),
        ("zstd;q=0, *;q=0.1", "gzip"),
        ("gzip;q=0", ""),
        ("gzip;q=0.5, identity", ""),
        ("br", ""),
        ("", ""),
        ("gzip;q=nonsense;;,", "gzip"),
    ],
)
async def test_answer_is_packed_as_the_client_likes(http: httpx.AsyncClient, accepted: str, coding: str) -> None:
    plain = (await http.get("/openapi.json", headers={"accept-encoding": "identity"})).content
    response, body = await raw_get(http, "/openapi.json", accepted)
    assert response.headers.get("content-encoding", "") == coding
    assert response.headers["vary"] == "Accept-Encoding"
    assert int(response.headers["content-length"]) == len(body)
    assert UNPACK.get(coding, bytes)(body) == plain
    assert response.headers["etag"].startswith("W/") == bool(coding)
    known = {"accept-encoding": accepted, "if-none-match": response.headers["etag"]}
    assert (await http.get("/openapi.json", headers=known)).status_code == 304


async def test_small_answers_and_downloads_go_out_as_they_are(http: httpx.AsyncClient) -> None:
    for path in (f"{PARENT}/small", f"{PARENT}/size-5000/versions/1:download"):
        response, body = await raw_get(http, path, "gzip, zstd")
        assert response.status_code == 200
        assert not {"content-encoding", "vary"} & set(response.headers)
        assert int(response.headers["content-length"]) == len(body)


async def test_large_json_of_a_service_is_packed(http: httpx.AsyncClient) -> None:
    body = json.dumps({"displayName": "x" * 300_000, "format": "messages"}).encode()
    response = await http.post(PARENT, content=body, headers={**JSON, "accept-encoding": "gzip"})
    assert response.headers["content-encoding"] == "gzip"
    assert int(response.headers["content-length"]) < 3000
    assert response.json()["displayName"] == "x" * 300_000


async def test_head_tells_of_the_packed_answer(http: httpx.AsyncClient) -> None:
    got, body = await raw_get(http, "/openapi.json", "gzip")
    head = await http.head("/openapi.json", headers={"accept-encoding": "gzip"})
    assert head.headers["content-length"] == got.headers["content-length"] == str(len(body))
    assert head.headers["content-encoding"] == "gzip"
