"""ETag and If-None-Match of answers to GET."""

from __future__ import annotations

import httpx
import pytest

from services.gateway.http import etags

DATASET = "/v1/projects/p/datasets/d"


async def test_known_answer_is_not_sent_again(http: httpx.AsyncClient) -> None:
    first = await http.get(DATASET)
    etag = first.headers["etag"]
    assert etag.startswith('W/"')
    again = await http.get(DATASET, headers={"if-none-match": etag})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    assert "x-request-id" in again.headers
    other = await http.get("/v1/projects/p/datasets/other", headers={"if-none-match": etag})
    assert other.status_code == 200
    assert other.headers["etag"] != etag


@pytest.mark.parametrize(
    ("sent", "status"),
    [("*", 304), ('"x", {etag}', 304), ("{strong}", 304), ('"x"', 200), ("", 200), ("nonsense", 200)],
)
async def test_if_none_match_is_a_list_compared_weakly(http: httpx.AsyncClient, sent: str, status: int) -> None:
    etag = (await http.get(DATASET)).headers["etag"]
    header = sent.format(etag=etag, strong=etag.removeprefix("W/"))
    assert (await http.get(DATASET, headers={"if-none-match": header})).status_code == status


async def test_only_reading_has_one(http: httpx.AsyncClient) -> None:
    response = await http.post("/v1/projects/p/datasets", json={"format": "messages"})
    assert response.status_code == 200
    assert "etag" not in response.headers
    assert (await http.head(DATASET)).headers["etag"] == (await http.get(DATASET)).headers["etag"]
    assert "etag" not in (await http.get("/v1/projects/p/datasets/missing")).headers


class Reply:
    def __init__(self, etag: object) -> None:
        self.etag = etag


def test_the_resources_own_etag_is_used_where_it_can_stand_in_a_header() -> None:
    assert etags.of(Reply("abc"), b"1") == etags.of(Reply("abc"), b"2") == 'W/"abc"'
    for unfit in ("", 'a"b', "a b", "a\r\nX: y", "é", 7):
        one, other = etags.of(Reply(unfit), b"1"), etags.of(Reply(unfit), b"2")
        assert one != other
        assert one.isascii() and one.isprintable() and one.count('"') == 2
