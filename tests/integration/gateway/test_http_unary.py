"""Unary RPCs over HTTP: what reaches the service, what comes back, errors, deadlines, cancellation, restarts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

PARENT = "/v1/projects/p/datasets"
PROBLEM_KEYS = {"type", "title", "status", "detail", "code", "reason", "metadata", "violations", "request_id"}


def problem(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document = response.json()
    assert set(document) == PROBLEM_KEYS
    assert document["status"] == status
    assert document["request_id"] == response.headers["x-request-id"]
    return document


async def test_get_answers_with_every_field(http: httpx.AsyncClient) -> None:
    response = await http.get(f"{PARENT}/d")
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["cache-control"] == "no-store"
    assert response.json() == {
        "name": "projects/p/datasets/d",
        "displayName": "",
        "format": "messages",
        "labels": {},
        "latestVersion": "",
        "etag": "",
    }


async def test_post_patch_delete_and_list_reach_their_methods(http: httpx.AsyncClient, seen: Any) -> None:
    created = await http.post(f"{PARENT}?datasetId=d&validateOnly=true", json={"displayName": "é", "format": "prompt"})
    assert created.json()["name"] == "projects/p/datasets/d"
    assert (seen.requests[-1].dataset.display_name, seen.requests[-1].validate_only) == ("é", True)
    await http.patch(f"{PARENT}/d", json={"displayName": ""})
    assert list(seen.requests[-1].update_mask.paths) == ["display_name"]
    assert (await http.delete(f"{PARENT}/d?etag=e")).json() == {}
    assert seen.requests[-1].etag == "e"
    assert (await http.get(f"{PARENT}?pageSize=3")).json() == {"datasets": [], "nextPageToken": ""}
    assert seen.requests[-1].page_size == 3


async def test_head_is_get_without_a_body(http: httpx.AsyncClient) -> None:
    response = await http.head(f"{PARENT}/d")
    assert (response.status_code, response.content) == (200, b"")


async def test_call_carries_identity_trace_and_request_id(http: httpx.AsyncClient, seen: Any) -> None:
    headers = {"x-request-id": "my-id", "traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01", "cookie": "no"}
    response = await http.get(f"{PARENT}/d", headers=headers)
    assert response.headers["x-request-id"] == "my-id"
    metadata = seen.metadata[-1]
    assert metadata["authorization"].startswith("Bearer ")
    assert (metadata["x-request-id"], metadata["traceparent"]) == ("my-id", headers["traceparent"])
    assert "cookie" not in metadata


async def test_request_id_that_could_forge_a_log_is_replaced(http: httpx.AsyncClient) -> None:
    response = await http.get(f"{PARENT}/d", headers={"x-request-id": 'a" b'})
    assert response.headers["x-request-id"] != 'a" b'


@pytest.mark.parametrize(
    ("headers", "low", "high"),
    [({}, 25, 30), ({"x-request-timeout": "2.5"}, 2, 2.5), ({"grpc-timeout": "1500m"}, 1, 1.5)],
)
async def test_deadline_reaches_the_service(
    http: httpx.AsyncClient, seen: Any, headers: dict[str, str], low: float, high: float
) -> None:
    await http.get(f"{PARENT}/d", headers=headers)
    # gRPC rounds what is left up a little.
    assert low < seen.deadlines[-1] <= high + 0.5


async def test_deadline_that_passes_is_504_and_cancels_the_service(http: httpx.AsyncClient, seen: Any) -> None:
    document = problem(await http.get(f"{PARENT}/slow", headers={"x-request-timeout": "0.3"}), 504)
    assert document["code"] == "DEADLINE_EXCEEDED"
    await asyncio.wait_for(seen.cancelled.wait(), 5)


@pytest.mark.parametrize("value", ["0", "-1", "soon", "inf", "nan", ""])
async def test_timeout_that_is_not_one_is_refused(http: httpx.AsyncClient, value: str) -> None:
    document = problem(await http.get(f"{PARENT}/d", headers={"x-request-timeout": value}), 400)
    assert document["violations"][0]["field"] == "X-Request-Timeout"


async def test_client_that_goes_away_cancels_the_service(http: httpx.AsyncClient, seen: Any) -> None:
    request = asyncio.create_task(http.get(f"{PARENT}/slow"))
    await asyncio.wait_for(seen.started.wait(), 5)
    request.cancel()
    await asyncio.wait_for(seen.cancelled.wait(), 5)


async def test_error_of_a_service_arrives_whole(http: httpx.AsyncClient) -> None:
    document = problem(await http.get(f"{PARENT}/missing"), 404)
    assert document["code"] == "NOT_FOUND"
    assert document["reason"] == "DATASET_NOT_FOUND"
    assert document["metadata"] == {"name": "projects/p/datasets/missing"}
    assert document["title"] == "Not Found"


async def test_every_violation_of_a_service_arrives(http: httpx.AsyncClient) -> None:
    document = problem(await http.get(f"{PARENT}/invalid"), 400)
    assert document["violations"] == [{"field": f"field_{n}", "description": f"is wrong {n}"} for n in range(3)]


async def test_crash_of_a_service_says_only_under_which_trace_the_log_has_it(
    http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    response = await http.get(f"{PARENT}/crash", headers={"traceparent": f"00-{trace}-b7ad6b7169203331-00"})
    document = problem(response, 500)
    assert (document["reason"], document["metadata"]) == ("INTERNAL", {"trace_id": trace})
    assert "secret" not in response.text
    assert "secret inside" in caplog.text
    unasked = problem(await http.get(f"{PARENT}/crash"), 500)["metadata"]["trace_id"]
    assert len(unasked) == 32 and unasked != trace


async def test_every_violation_of_transcoding_arrives(http: httpx.AsyncClient) -> None:
    response = await http.post(f"{PARENT}?datasetid=d&validateOnly=maybe", json={"formt": "x", "labels": []})
    fields = [violation["field"] for violation in problem(response, 400)["violations"]]
    assert fields == ["dataset.formt", "dataset.labels", "datasetid", "validate_only"]


async def test_malformed_json_tells_where(http: httpx.AsyncClient) -> None:
    headers = {"content-type": "application/json"}
    document = problem(await http.post(PARENT, content=b'{\n "format": }', headers=headers), 400)
    assert document["reason"] == "MALFORMED_JSON"
    assert document["metadata"] == {"line": "2", "column": "12"}


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/json; charset=latin-1"},
        {"content-type": "application/json", "content-encoding": "br"},
        {},
    ],
)
async def test_body_that_is_not_json_is_415(http: httpx.AsyncClient, headers: dict[str, str]) -> None:
    problem(await http.post(PARENT, content=b"{}", headers=headers), 415)


@pytest.mark.parametrize("known_length", [True, False])
async def test_body_over_the_limit_is_413(http: httpx.AsyncClient, seen: Any, known_length: bool) -> None:
    body = json.dumps({"displayName": "x" * (4 * 1024 * 1024)}).encode()

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 65536):
            yield body[start : start + 65536]

    headers = {"content-type": "application/json"}
    document = problem(await http.post(PARENT, content=body if known_length else pieces(), headers=headers), 413)
    assert document["metadata"] == {"limit_bytes": str(4 * 1024 * 1024)}
    assert not seen.requests


async def test_unknown_path_is_404_and_other_method_405_with_allow(http: httpx.AsyncClient) -> None:
    assert problem(await http.get("/v1/nothing"), 404)["reason"] == "ROUTE_NOT_FOUND"
    response = await http.put(f"{PARENT}/d")
    assert problem(response, 405)["reason"] == "METHOD_NOT_ALLOWED"
    assert response.headers["allow"] == "DELETE, GET, HEAD, PATCH"


async def test_badly_encoded_path_is_a_violation(http: httpx.AsyncClient) -> None:
    problem(await http.get(f"{PARENT}/%ff"), 400)


async def test_service_that_is_down_is_503_at_once_and_back_within_seconds(
    http: httpx.AsyncClient, services: Any
) -> None:
    assert (await http.get(f"{PARENT}/d")).status_code == 200
    await services.stop()
    loop = asyncio.get_running_loop()
    before = loop.time()
    response = await http.get(f"{PARENT}/d")
    assert loop.time() - before < 3
    document = problem(response, 503)
    assert (document["reason"], document["metadata"]) == ("SERVICE_UNREACHABLE", {"service": "dataset"})
    assert response.headers["retry-after"] == "1"
    assert "127.0.0.1" not in response.text
    await services.start()
    before = loop.time()
    while (await http.get(f"{PARENT}/d")).status_code != 200:
        assert loop.time() - before < 5
        await asyncio.sleep(0.05)


async def test_calls_do_not_wait_for_each_other(http: httpx.AsyncClient) -> None:
    slow = [asyncio.create_task(http.get(f"{PARENT}/slow", headers={"x-request-timeout": "60"})) for _ in range(20)]
    answers = await asyncio.wait_for(asyncio.gather(*(http.get(f"{PARENT}/d{n}") for n in range(100))), 20)
    assert [answer.json()["name"] for answer in answers] == [f"projects/p/datasets/d{n}" for n in range(100)]
    assert not any(task.done() for task in slow)
    for task in slow:
        task.cancel()


async def test_service_without_a_target_has_no_route(start_gateway: Any, http: httpx.AsyncClient) -> None:
    gateway = await start_gateway(RLHF_TRAINER_TARGET="")
    base = f"http://127.0.0.1:{gateway.http_port}"
    assert (await http.get(f"{base}{PARENT}/d")).status_code == 200
    problem(await http.get(f"{base}/v1/algorithms"), 404)
