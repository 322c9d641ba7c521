"""Server streams over HTTP: events and lines, cursors, errors, readers that are slow or gone, the gateway's end."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from tests.integration.gateway.streaming_trainer import FLOOD, FLOOD_TEXT, JOB

EVENTS = {"accept": "text/event-stream"}
_HEADERS = "Authorization: Bearer the-token-of-the-test\r\nConnection: close\r\n"


def events(body: str) -> list[dict[str, str]]:
    """The fields of each; comments are left out."""
    blocks = (dict(line.split(": ", 1) for line in block.splitlines() if line != ":") for block in body.split("\n\n"))
    return [fields for fields in blocks if fields]


def lines(response: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(line) for line in response.text.splitlines()]


async def test_events_have_the_cursor_as_their_id_and_an_end(http: httpx.AsyncClient) -> None:
    response = await http.get(f"{JOB}/j:streamMetrics", headers=EVENTS)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-store"
    first, *points, end = events(response.text)
    assert first == {"retry": "1000"}
    assert [event["id"] for event in points] == ["1", "2", "3", "4", "5"]
    found = json.loads(points[0]["data"])
    assert found["points"][0]["metric"] == "a\u2028\n\rb"
    assert found["lastOrdinal"] == "1"
    assert end == {"event": "end", "data": "{}"}


@pytest.mark.parametrize("accept", ["*/*", "application/x-ndjson", "application/json", "text/event-stream;q=0"])
async def test_lines_are_one_object_each(http: httpx.AsyncClient, accept: str) -> None:
    response = await http.get(f"{JOB}/j:streamMetrics", headers={"accept": accept})
    assert response.headers["content-type"].startswith("application/x-ndjson")
    assert [line["lastOrdinal"] for line in lines(response)] == ["1", "2", "3", "4", "5"]


async def test_every_stream_with_an_annotation_is_there(http: httpx.AsyncClient) -> None:
    response = await http.get("/v1/projects/p/datasets/d/uploads/u:streamEvents")
    assert [line["upload"]["receivedBytes"] for line in lines(response)] == ["0", "1", "2"]
    response = await http.get(
        "/v1/projects/p/datasets/d/uploads/u:streamEvents", headers=EVENTS | {"last-event-id": "x"}
    )
    assert all("id" not in event for event in events(response.text)), "this one cannot resume"


@pytest.mark.parametrize(
    ("query", "headers", "expected"),
    [
        ("", {}, 0),
        ("?after_ordinal=3", {}, 3),
        ("?afterOrdinal=3", {}, 3),
        ("", {"last-event-id": "4"}, 4),
        ("?after_ordinal=1", {"last-event-id": "4"}, 4),
        ("?afterOrdinal=1", {"last-event-id": "4"}, 4),
        ("?after_ordinal=1", {"last-event-id": ""}, 1),
    ],
)
async def test_a_stream_resumes_after_its_cursor(
    http: httpx.AsyncClient, seen: Any, query: str, headers: dict[str, str], expected: int
) -> None:
    response = await http.get(f"{JOB}/j:streamMetrics{query}", headers=headers)
    assert [int(line["lastOrdinal"]) for line in lines(response)] == list(range(expected + 1, 6))
    assert seen.requests[-1].after_ordinal == expected


async def test_filters_stand_in_the_query(http: httpx.AsyncClient, seen: Any) -> None:
    await http.get(f"{JOB}/j:streamMetrics?metrics=reward/*&metrics=train/loss&stored_only=true")
    assert list(seen.requests[-1].metrics) == ["reward/*", "train/loss"]
    assert seen.requests[-1].stored_only
    assert seen.deadlines[-1] is None or seen.deadlines[-1] > 10**6, "a stream has no deadline that nobody gave it"


async def test_a_browser_that_has_everything_is_told_not_to_come_back(http: httpx.AsyncClient) -> None:
    response = await http.get(f"{JOB}/j:streamMetrics", headers=EVENTS | {"last-event-id": "5"})
    assert (response.status_code, response.content) == (204, b"")


@pytest.mark.parametrize(
    ("path", "headers", "status", "reason"),
    [
        (f"{JOB}/missing:streamMetrics", {}, 404, "JOB_NOT_FOUND"),
        (f"{JOB}/j:streamMetrics?nonsense=1&after_ordinal=x", {}, 400, "INVALID_FIELDS"),
        (f"{JOB}/j:streamMetrics", {"last-event-id": "-1"}, 400, "INVALID_FIELDS"),
        (f"{JOB}/j:streamMetrics", {"last-event-id": "9" * 19}, 400, "INVALID_FIELDS"),
    ],
)
@pytest.mark.parametrize("accept", ["text/event-stream", "application/x-ndjson"])
async def test_an_error_before_the_first_message_has_its_status(
    http: httpx.AsyncClient, path: str, headers: dict[str, str], status: int, reason: str, accept: str
) -> None:
    response = await http.get(path, headers=headers | {"accept": accept})
    assert (response.status_code, response.json()["reason"]) == (status, reason)
    assert response.headers["content-type"] == "application/problem+json"


async def test_a_later_error_ends_the_stream_with_its_problem(http: httpx.AsyncClient) -> None:
    *_, last, error = events((await http.get(f"{JOB}/fails:streamMetrics", headers=EVENTS)).text)
    assert (last["id"], error["event"]) == ("2", "error")
    problem = json.loads(error["data"])
    assert (problem["status"], problem["reason"], problem["detail"]) == (400, "BROKEN", "in mid-stream")
    response = await http.get(f"{JOB}/fails:streamMetrics")
    *_, last_line, error_line = lines(response)
    assert last_line["lastOrdinal"] == "2"
    assert error_line["error"]["reason"] == "BROKEN"
    assert error_line["error"]["request_id"] == response.headers["x-request-id"]


async def test_a_stream_that_is_silent_at_first_is_begun(
    http: httpx.AsyncClient, streams: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.gateway.streams.server_stream.FIRST_SECONDS", 0.05)
    async with http.stream("GET", f"{JOB}/late:streamMetrics", headers=EVENTS) as response:
        assert response.status_code == 200, "before the service has said anything"
        streams.may_go_on.set()
        body = (await response.aread()).decode()
    assert json.loads(events(body)[-1]["data"])["reason"] == "LATE"


async def test_a_silent_stream_is_kept_open_by_comments(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.gateway.streams.server_stream.FIRST_SECONDS", 0.05)
    monkeypatch.setattr("services.gateway.streams.slow_reader.BEAT_SECONDS", 0.05)
    received = ""
    async with asyncio.timeout(10), http.stream("GET", f"{JOB}/silent:streamMetrics", headers=EVENTS) as response:
        async for text in response.aiter_text():
            received += text
            if received.count(":\n\n") >= 2:
                break


async def test_head_opens_nothing(http: httpx.AsyncClient, seen: Any) -> None:
    response = await http.head(f"{JOB}/endless:streamMetrics", headers=EVENTS)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert not seen.requests


@pytest.mark.parametrize("job", ["endless", "silent"])
async def test_a_client_that_vanishes_ends_the_services_call(gateway: Any, seen: Any, job: str) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", gateway.http_port)
    writer.write(_get(f"{JOB}/{job}:streamMetrics"))
    await asyncio.wait_for(seen.started.wait(), 10)
    writer.transport.abort()
    await asyncio.wait_for(seen.cancelled.wait(), 10)
    await _none_open(gateway)


async def test_a_timeout_of_the_caller_ends_the_stream(http: httpx.AsyncClient, seen: Any) -> None:
    response = await http.get(f"{JOB}/endless:streamMetrics", headers={"x-request-timeout": "1"})
    assert lines(response)[-1]["error"]["status"] == 504
    await asyncio.wait_for(seen.cancelled.wait(), 10)


@pytest.fixture
async def impatient(start_gateway: Callable[..., Any]) -> Any:
    return await start_gateway(RLHF_GATEWAY_SLOW_READER_SECONDS="0.4")


@pytest.fixture
async def slow_reader(impatient: Any) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Has asked for half a gigabyte of lines and reads none of them."""
    opened = socket.socket()
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
    opened.setblocking(False)
    await asyncio.get_running_loop().sock_connect(opened, ("127.0.0.1", impatient.http_port))
    reader, writer = await asyncio.open_connection(sock=opened, limit=64 * 1024)
    writer.write(_get(f"{JOB}/j:streamLogs"))
    yield reader, writer
    writer.transport.abort()


async def test_a_slow_reader_is_cut_off_with_a_reason(
    slow_reader: tuple[asyncio.StreamReader, asyncio.StreamWriter], seen: Any, streams: Any
) -> None:
    reader, _ = slow_reader
    await asyncio.wait_for(seen.cancelled.wait(), 20)
    pulled = streams.pulled
    assert 0 < pulled < FLOOD / 10, "the rest was never asked for"
    async with asyncio.timeout(20):
        body = await reader.read()
    *_, last = (line for line in body.split(b"\r\n") if line.startswith(b"{"))
    assert json.loads(last)["error"]["reason"] == "SLOW_READER"
    assert body.count(FLOOD_TEXT.encode()) <= pulled + 1


async def test_the_connection_of_a_reader_that_stays_away_is_reset(
    impatient: Any, slow_reader: Any, seen: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.gateway.streams.slow_reader.LAST_WORDS_SECONDS", 0.2)
    reader, _ = slow_reader
    await asyncio.wait_for(seen.cancelled.wait(), 20)
    await _none_open(impatient)
    with pytest.raises(ConnectionResetError):
        async with asyncio.timeout(20):
            await reader.read()


async def test_the_gateways_end_is_told_to_its_readers(start_gateway: Callable[..., Any], seen: Any) -> None:
    gateway = await start_gateway()
    base = f"http://127.0.0.1:{gateway.http_port}"
    authorization = {"authorization": "Bearer the-token-of-the-test"}
    async with (
        httpx.AsyncClient(base_url=base, headers=authorization | EVENTS, timeout=20, trust_env=False) as client,
        client.stream("GET", f"{JOB}/endless:streamMetrics") as response,
    ):
        await asyncio.wait_for(seen.started.wait(), 10)
        async with asyncio.timeout(4):
            _, body = await asyncio.gather(gateway.stop(), response.aread())
    found = events(body.decode())
    assert found[0] == {"retry": "1000"}
    assert (found[-1]["event"], json.loads(found[-1]["data"])["reason"]) == ("error", "GATEWAY_STOPPING")


async def test_streams_have_a_limit_of_their_own(start_gateway: Callable[..., Any], seen: Any) -> None:
    gateway = await start_gateway(RLHF_GATEWAY_MAX_STREAMS="1", RLHF_GATEWAY_MAX_CONCURRENT_REQUESTS="1")
    base = f"http://127.0.0.1:{gateway.http_port}"
    authorization = {"authorization": "Bearer the-token-of-the-test"}
    async with (
        httpx.AsyncClient(base_url=base, headers=authorization, timeout=20, trust_env=False) as client,
        client.stream("GET", f"{JOB}/endless:streamMetrics"),
    ):
        await asyncio.wait_for(seen.started.wait(), 10)
        refused = await client.get(f"{JOB}/j:streamMetrics")
        assert (refused.status_code, refused.json()["reason"]) == (503, "TOO_MANY_STREAMS")
        assert refused.headers["retry-after"]
        assert (await client.get("/v1/projects/p/datasets/d")).status_code == 200


def _get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{_HEADERS}\r\n".encode()


async def _none_open(gateway: Any) -> None:
    async with asyncio.timeout(10):
        while gateway.streams.count:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
