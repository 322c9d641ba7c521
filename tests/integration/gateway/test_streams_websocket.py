"""Server streams over WebSockets, and the commands they take; who gets in; how each end is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
import websockets.exceptions
from websockets.asyncio.client import ClientConnection, connect

from tests.integration.gateway.conftest import AUTHORIZATION
from tests.integration.gateway.streaming_trainer import FLOOD, JOB


def opening(gateway: Any, path: str, headers: dict[str, str] | None = None, **how: Any) -> connect:
    """A client that is about to connect."""
    address = f"ws://127.0.0.1:{gateway.http_port}{path}"
    wanted = AUTHORIZATION if headers is None else headers
    return connect(address, additional_headers=wanted, proxy=None, open_timeout=20, **how)


async def refusal(gateway: Any, path: str, headers: dict[str, str] | None = None) -> tuple[int, dict[str, Any]]:
    """Status and problem of a handshake that is refused."""
    with pytest.raises(websockets.exceptions.InvalidStatus) as refused:
        async with opening(gateway, path, headers):
            pass
    response = refused.value.response
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    return response.status_code, json.loads(response.body or b"")


async def received(client: ClientConnection) -> dict[str, Any]:
    async with asyncio.timeout(20):
        return json.loads(await client.recv())


async def ending(client: ClientConnection) -> tuple[int, str]:
    """Code and reason, after whatever else was still to come."""
    async with asyncio.timeout(20):
        try:
            while True:
                await client.recv()
        except websockets.exceptions.ConnectionClosed as closed:
            assert closed.rcvd is not None
            return closed.rcvd.code, closed.rcvd.reason


async def ask(client: ClientConnection, message: Any) -> dict[str, Any]:
    """What a command is answered."""
    await client.send(message if isinstance(message, str) else json.dumps(message))
    while "id" not in (answer := await received(client)):
        pass
    return answer


async def test_messages_come_as_text_and_the_end_is_1000(gateway: Any) -> None:
    async with opening(gateway, f"{JOB}/j:streamMetrics?after_ordinal=2") as client:
        assert client.response is not None and client.response.headers["X-Request-Id"]
        found = [await received(client) for _ in range(3)]
        assert [message["lastOrdinal"] for message in found] == ["3", "4", "5"]
        assert await ending(client) == (1000, "end")


async def test_it_compresses_and_answers_pings(gateway: Any) -> None:
    async with opening(gateway, f"{JOB}/endless:streamMetrics") as client:
        assert client.response is not None
        assert "permessage-deflate" in client.response.headers["Sec-WebSocket-Extensions"]
        async with asyncio.timeout(20):
            await (await client.ping())


async def test_the_last_event_id_resumes_here_too(gateway: Any) -> None:
    async with opening(gateway, f"{JOB}/j:streamMetrics", AUTHORIZATION | {"Last-Event-ID": "4"}) as client:
        assert (await received(client))["lastOrdinal"] == "5"


@pytest.mark.parametrize(
    ("headers", "status", "reason"),
    [
        ({}, 401, "NO_TOKEN"),
        ({"authorization": "Bearer wrong"}, 401, "WRONG_TOKEN"),
        (AUTHORIZATION | {"origin": "https://elsewhere.example"}, 403, "ORIGIN_NOT_ALLOWED"),
        (AUTHORIZATION | {"origin": "null"}, 403, "ORIGIN_NOT_ALLOWED"),
    ],
)
async def test_who_may_not_call_gets_no_socket(
    gateway: Any, seen: Any, headers: dict[str, str], status: int, reason: str
) -> None:
    found, problem = await refusal(gateway, f"{JOB}/j:streamMetrics", headers)
    assert (found, problem["reason"]) == (status, reason)
    assert not seen.requests


async def test_another_host_is_refused(gateway: Any, seen: Any) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.http_port)
    head = (
        f"GET {JOB}/j:streamMetrics HTTP/1.1\r\nHost: rebound.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        f"Authorization: {AUTHORIZATION['authorization']}\r\n\r\n"
    )
    writer.write(head.encode())
    async with asyncio.timeout(20):
        answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 403 ") and b"HOST_NOT_ALLOWED" in answer
    assert not seen.requests


@pytest.mark.parametrize(
    ("path", "status", "reason"),
    [
        (f"{JOB}/missing:streamMetrics", 404, "JOB_NOT_FOUND"),
        (f"{JOB}/j:streamMetrics?nonsense=1", 400, "INVALID_FIELDS"),
        (f"{JOB}/j", 400, "INVALID_FIELDS"),
        ("/healthz", 400, "INVALID_FIELDS"),
        ("/v1/nothing", 404, "ROUTE_NOT_FOUND"),
        (f"{JOB}/j:cancel", 405, "METHOD_NOT_ALLOWED"),
    ],
)
async def test_a_handshake_is_refused_with_status_and_problem(
    gateway: Any, path: str, status: int, reason: str
) -> None:
    found, problem = await refusal(gateway, path)
    assert (found, problem["reason"]) == (status, reason)


async def test_a_later_error_closes_with_its_reason(gateway: Any) -> None:
    async with opening(gateway, f"{JOB}/fails:streamMetrics") as client:
        assert await ending(client) == (1008, "BROKEN: in mid-stream")


async def test_the_job_that_is_watched_can_be_cancelled(gateway: Any, seen: Any) -> None:
    async with opening(gateway, f"{JOB}/j:streamEvents") as client:
        assert (await received(client))["trainingJob"]["state"] == "JOB_STATE_RUNNING"
        await client.send('{"id": "a", "cancel": {}}')
        answers = {"id" in message: message for message in (await received(client), await received(client))}
        assert answers[True]["id"] == "a"
        assert answers[True]["result"]["state"] == "JOB_STATE_CANCELLING"
        assert answers[False]["trainingJob"]["state"] == "JOB_STATE_CANCELLED"
        assert await ending(client) == (1000, "end")
    assert seen.requests[-1].name == "projects/p/trainingJobs/j"
    assert seen.metadata[-1]["authorization"] == AUTHORIZATION["authorization"]


async def test_the_error_of_a_command_is_a_problem_and_the_socket_stays(gateway: Any) -> None:
    async with opening(gateway, f"{JOB}/ended:streamEvents") as client:
        answer = await ask(client, {"id": 7, "cancel": {}})
        assert (answer["id"], answer["error"]["status"], answer["error"]["reason"]) == (7, 400, "WRONG_STATE")
        answer = await ask(client, {"id": 8, "cancel": {"name": "projects/p/trainingJobs/other"}})
        assert answer["error"]["violations"][0]["field"] == "name", "no other job through this socket"


@pytest.mark.parametrize(
    ("message", "id_", "reason", "mentions"),
    [
        ('{"id": 1, "explode": {}}', 1, "COMMAND_UNKNOWN", "cancel"),
        ('{"id": 1}', 1, "INVALID_FIELDS", "cancel"),
        ('{"id": 1, "cancel": {}, "explode": {}}', 1, "INVALID_FIELDS", "one command"),
        ('{"id": 1, "cancel": []}', 1, "INVALID_FIELDS", "object"),
        ('{"id": 1, "cancel": {"nonsense": 1}}', 1, "INVALID_FIELDS", "nonsense"),
        ('{"cancel": {}}', None, "INVALID_FIELDS", "id"),
        ('{"id": true, "cancel": {}}', None, "INVALID_FIELDS", "id"),
        ('{"id": "' + "x" * 200 + '", "cancel": {}}', None, "INVALID_FIELDS", "id"),
        ('{"id": "\\ud800", "cancel": {}}', None, "INVALID_FIELDS", "id"),
        ('{"id": "\\ud800", "explode": {}}', None, "INVALID_FIELDS", "id"),
        ('{"id": 1, "\\ud800": {}}', 1, "COMMAND_UNKNOWN", "cancel"),
        ('{"id": 1, "cancel": {"\\ud800": "\\ud800"}}', 1, "INVALID_FIELDS", ""),
        ("[]", None, "INVALID_FIELDS", "object"),
        ('{"id": 1', None, "MALFORMED_JSON", ""),
        ("[" * 50_000, None, "MALFORMED_JSON", ""),
    ],
)
async def test_a_message_that_is_no_command_is_answered(
    gateway: Any, seen: Any, message: str, id_: Any, reason: str, mentions: str
) -> None:
    async with opening(gateway, f"{JOB}/endless:streamMetrics") as client:
        answer = await ask(client, message)
        assert (answer["id"], answer["error"]["reason"]) == (id_, reason)
        assert mentions in answer["error"]["detail"]
        assert (await ask(client, {"id": 2, "cancel": {}}))["result"], "and the socket goes on"
    assert len(seen.requests) == 2


async def test_the_stream_of_another_resource_has_no_cancel(gateway: Any) -> None:
    async with opening(gateway, "/v1/projects/p/datasets/d/uploads/endless:streamEvents") as client:
        answer = await ask(client, {"id": 1, "cancel": {}})
        assert answer["error"]["reason"] == "COMMAND_UNKNOWN"
        assert "commit" in answer["error"]["detail"]


async def test_commands_that_pile_up_are_refused(gateway: Any, streams: Any) -> None:
    async with opening(gateway, f"{JOB}/stuck:streamEvents") as client:
        for number in range(8):
            await client.send(json.dumps({"id": number, "cancel": {}}))
        answer = await ask(client, {"id": 8, "cancel": {}})
        assert (answer["id"], answer["error"]["reason"]) == (8, "TOO_MANY_COMMANDS")


async def test_a_flood_of_commands_is_refused_and_costs_the_service_nothing(gateway: Any, seen: Any) -> None:
    async with opening(gateway, f"{JOB}/ended:streamEvents") as client:
        for number in range(100):
            await client.send(json.dumps({"id": number, "nonsense": {}}))
        answers = [await ask(client, {"id": 100, "nonsense": {}})]
        while answers[-1]["id"] != 100:
            answers.append(await received(client))
        reasons = {answer["error"]["reason"] for answer in answers if answer.get("error")}
        assert reasons == {"COMMAND_UNKNOWN", "TOO_MANY_COMMANDS"}
    assert len(seen.requests) == 1


async def test_a_message_that_is_too_big_closes_with_1009(gateway: Any, seen: Any) -> None:
    async with opening(gateway, f"{JOB}/endless:streamMetrics") as client:
        await asyncio.wait_for(seen.started.wait(), 20)
        await client.send(json.dumps({"id": 1, "cancel": {"name": "x" * 100_000}}))  # a few bytes, compressed
        assert (await ending(client))[0] == 1009
    await asyncio.wait_for(seen.cancelled.wait(), 20)


async def test_bytes_are_not_taken(gateway: Any) -> None:
    async with opening(gateway, f"{JOB}/endless:streamMetrics") as client:
        await client.send(b"\x00")
        assert (await ending(client))[0] == 1003


@pytest.mark.parametrize("job", ["endless", "silent"])
async def test_a_client_that_vanishes_ends_the_services_call(
    gateway: Any, seen: Any, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.gateway.streams.server_stream.FIRST_SECONDS", 0.05)
    client = await opening(gateway, f"{JOB}/{job}:streamMetrics")
    await asyncio.wait_for(seen.started.wait(), 20)
    client.transport.abort()
    await asyncio.wait_for(seen.cancelled.wait(), 20)
    async with asyncio.timeout(10):
        while gateway.streams.count:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_a_slow_reader_is_cut_off_with_1013(start_gateway: Callable[..., Any], seen: Any, streams: Any) -> None:
    gateway = await start_gateway(RLHF_GATEWAY_SLOW_READER_SECONDS="0.4")
    async with opening(gateway, f"{JOB}/j:streamLogs", compression=None, max_queue=1) as client:
        await asyncio.wait_for(seen.cancelled.wait(), 20)
        assert 0 < streams.pulled < FLOOD / 10, "the rest was never asked for"
        code, reason = await ending(client)
        assert code == 1013 and reason.startswith("SLOW_READER: ")


async def test_the_gateways_end_is_told_as_a_restart(start_gateway: Callable[..., Any], seen: Any) -> None:
    gateway = await start_gateway()
    async with opening(gateway, f"{JOB}/endless:streamMetrics") as client:
        await asyncio.wait_for(seen.started.wait(), 20)
        async with asyncio.timeout(4):
            told, _ = await asyncio.gather(ending(client), gateway.stop())
    assert told[0] == 1012 and told[1].startswith("GATEWAY_STOPPING: ")
