"""Figures, access log and audit log after real calls, events and a run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
import websockets
from rlhf.dataset.v1 import dataset_service_pb2 as pb
from rlhf.dataset.v1.dataset_service_pb2_grpc import DatasetServiceStub

from services.mesh.runs.lag import Lag
from tests.fix_member import until
from tests.fix_telemetry import Figure
from tests.integration.telemetry.conftest import PARENT, ROWS, Mesh, job_of

Lines = Callable[[str], list[dict[str, Any]]]
CREATE = "/v1/{parent=projects/*}/trainingJobs"


async def test_figures_of_a_training(figure: Figure, mesh: Mesh) -> None:
    version = await mesh.upload("d")
    assert figure("rlhf.upload.received") == len(ROWS)
    made = await mesh.call("POST", f"/v1/{PARENT}/trainingJobs", job_of(version))
    await mesh.until(f"/v1/{made['name']}", lambda job: "endTime" in job)
    await until(lambda: figure("rlhf.job.duration", rlhf__job__kind="training", rlhf__job__state="SUCCEEDED") == 1)
    assert figure("rlhf.job.duration", rlhf__job__kind="validation", rlhf__job__state="SUCCEEDED") == 1
    changed = {"rlhf__event__type": "rlhf.event.v1.TrainingJobChanged"}
    await until(lambda: figure("messaging.client.consumed.messages", **changed) == 3)
    assert figure("messaging.client.sent.messages", **changed) == 3
    assert figure("rlhf.event.failed_deliveries") is None

    method = "rlhf.trainer.v1.TrainerService/CreateTrainingJob"
    assert figure("rpc.server.call.duration", rpc__method=method, rpc__response__status_code="OK") == 1
    refused = await mesh.http.post(f"/v1/{PARENT}/trainingJobs", json={**job_of(version), "algorithm": "none"})
    assert refused.status_code == 400
    assert figure("rpc.server.call.duration", rpc__method=method, rpc__response__status_code="INVALID_ARGUMENT") == 1
    posted = {"http__request__method": "POST", "http__route": CREATE}
    assert figure("http.server.request.duration", **posted, http__response__status_code=200) == 1
    assert figure("http.server.request.duration", **posted, http__response__status_code=400) == 1
    assert (figure("rlhf.http.received", **posted) or 0) > 2 * len(version)
    assert figure("http.server.active_requests") == 0

    await until(lambda: figure("rlhf.checkpoint.count", rlhf__checkpoint__state="READY") == 1)
    await until(lambda: figure("rlhf.event.unpublished", db__namespace="trainer") == 0)
    assert figure("rlhf.spool.followed") is None, "no run is left"
    pool = {"db__client__connection__pool__name": "trainer"}
    assert figure("db.client.connection.max", **pool) == 2 * 10  # of the service and its worker
    assert (figure("db.client.connection.count", **pool) or 0) >= 2


async def test_the_queue_is_counted(figure: Figure, mesh: Mesh) -> None:
    """A queue that has become empty is 0, not absent."""
    version = await mesh.upload("d")
    queue = {"rlhf__job__kind": "training", "db__namespace": "trainer"}
    assert figure("rlhf.job.open", **queue) is None
    made = await mesh.call("POST", f"/v1/{PARENT}/trainingJobs", {**job_of(version), "priority": 1})
    await until(lambda: figure("rlhf.job.open", **queue) == 1)
    await mesh.until(f"/v1/{made['name']}", lambda job: "endTime" in job)
    await until(lambda: figure("rlhf.job.open", **queue) == 0)


async def test_a_path_that_somebody_makes_up_is_no_figure(figure: Figure, mesh: Mesh, lines: Lines) -> None:
    for path in ("/v1/secret-one", "/v1/secret-two", "/v1/projects/p/datasets/%ff"):
        assert (await mesh.http.get(path + "?token=secret")).status_code in (400, 404)
    assert (await mesh.http.request("PROPFIND", "/v1/secret-three")).status_code in (404, 405)
    assert figure("http.server.request.duration", http__request__method="GET", http__route="") == 2
    assert figure("http.server.request.duration", http__request__method="_OTHER") == 1
    assert "secret" not in str(lines("access"))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{mesh.gateway.port}") as channel:
        invented = channel.unary_unary("/rlhf.dataset.v1.DatasetService/Invented")
        with pytest.raises(grpc.aio.AioRpcError):
            await invented(b"", metadata=[("authorization", f"Bearer {mesh.token}")])
    assert figure("rpc.server.call.duration", rpc__method="_OTHER") == 1


async def test_the_access_log(mesh: Mesh, lines: Lines) -> None:
    await mesh.call("GET", f"/v1/{PARENT}/datasets?page_size=7", **{"x-request-id": "mine"})
    await mesh.http.get("/healthz")
    denied = await mesh.http.get(f"/v1/{PARENT}/datasets", headers={"authorization": "Bearer stolen-token"})
    assert denied.status_code == 401
    good, bad = lines("access")
    assert (good["method"], good["route"], good["status"]) == ("GET", "/v1/{parent=projects/*}/datasets", 200)
    assert (good["principal"], good["request_id"], good["client"]) == ("user:owner", "mine", "127.0.0.1")
    assert good["received_bytes"] == 0 and good["sent_bytes"] > 0 and good["duration_ms"] > 0
    assert (bad["status"], bad["principal"]) == (401, "")
    assert "stolen-token" not in str([good, bad]) and mesh.token not in str([good, bad])
    assert "page_size" not in str(good)


async def test_a_stream_is_logged_at_its_end(mesh: Mesh, lines: Lines, figure: Figure) -> None:
    version = await mesh.upload("d")
    answer = await mesh.http.get(f"/v1/{version}:download")
    assert answer.content == ROWS
    [line] = [one for one in lines("access") if one["route"].endswith(":download")]
    assert line["sent_bytes"] == len(ROWS)
    await until(
        lambda: figure("rlhf.rpc.open_streams", rpc__method="rlhf.dataset.v1.DatasetService/DownloadDataset") == 0
    )


async def test_open_streams_are_counted_until_they_end(mesh: Mesh, figure: Figure) -> None:
    """In the gateway that passes it on and in the service that gives it, whoever ends it."""
    upload = await mesh.new_upload("d")
    watch = {"rpc__method": "rlhf.dataset.v1.DatasetService/StreamUploadEvents"}
    async with grpc.aio.insecure_channel(f"127.0.0.1:{mesh.gateway.port}") as channel:
        metadata = [("authorization", f"Bearer {mesh.token}")]
        call = DatasetServiceStub(channel).StreamUploadEvents(
            pb.StreamUploadEventsRequest(name=upload), metadata=metadata
        )
        assert (await anext(aiter(call))).upload.name == upload
        assert figure("rlhf.rpc.open_streams", **watch) == 2
        call.cancel()
    await until(lambda: figure("rlhf.rpc.open_streams", **watch) == 0)
    assert figure("rpc.server.call.duration", **watch, rpc__response__status_code="CANCELLED") == 2


async def test_a_websocket_is_one_request(mesh: Mesh, figure: Figure, lines: Lines) -> None:
    version = await mesh.upload("d")
    made = await mesh.call("POST", f"/v1/{PARENT}/trainingJobs", job_of(version))
    await mesh.until(f"/v1/{made['name']}", lambda job: "endTime" in job)
    url = f"ws://127.0.0.1:{mesh.gateway.http_port}/v1/{made['name']}:streamEvents"
    headers = {"authorization": f"Bearer {mesh.token}"}
    async with websockets.connect(url, additional_headers=headers, proxy=None) as socket:
        texts = [text async for text in socket]
    assert len(texts) >= 3
    await until(lambda: any(line["route"].endswith(":streamEvents") for line in lines("access")))
    [line] = [line for line in lines("access") if line["route"].endswith(":streamEvents")]
    assert (line["method"], line["status"], line["principal"]) == ("GET", 101, "user:owner")
    assert line["sent_bytes"] >= sum(len(text) for text in texts)
    assert figure("http.server.request.duration", http__response__status_code=101) == 1


async def test_the_audit_log(mesh: Mesh, lines: Lines) -> None:
    """Who changed what, over HTTP and over gRPC, once each; who was turned away; not who read."""
    await mesh.call("POST", f"/v1/{PARENT}/datasets?dataset_id=d", {"format": "messages"}, **{"x-request-id": "r-1"})
    await mesh.call("GET", f"/v1/{PARENT}/datasets/d")
    deleted = await mesh.http.delete(f"/v1/{PARENT}/datasets/absent")
    assert deleted.status_code == 404
    async with grpc.aio.insecure_channel(f"127.0.0.1:{mesh.gateway.port}") as channel:
        stub = DatasetServiceStub(channel)
        metadata = [("authorization", f"Bearer {mesh.token}"), ("x-forwarded-for", "elsewhere")]
        await stub.DeleteDataset(pb.DeleteDatasetRequest(name=f"{PARENT}/datasets/d"), metadata=metadata)
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.ListDatasets(pb.ListDatasetsRequest(parent=PARENT))

        async def pieces() -> AsyncIterator[pb.WriteUploadRequest]:
            yield pb.WriteUploadRequest(name=f"{PARENT}/datasets/d/uploads/u", chunk=b"x")

        with pytest.raises(grpc.aio.AioRpcError):
            await stub.WriteUpload(pieces(), metadata=metadata)
    await until(lambda: len(lines("audit")) >= 5)
    told = [(line["principal"], line["verb"], line["resource"], line["result"]) for line in lines("audit")]
    assert told == [
        ("user:owner", "CreateDataset", f"{PARENT}/datasets/d", "OK"),
        ("user:owner", "DeleteDataset", f"{PARENT}/datasets/absent", "NOT_FOUND"),
        ("user:owner", "DeleteDataset", f"{PARENT}/datasets/d", "OK"),
        ("", "ListDatasets", "", "UNAUTHENTICATED"),
        ("user:owner", "WriteUpload", f"{PARENT}/datasets/d/uploads/u", "NOT_FOUND"),
    ]
    assert lines("audit")[0]["request_id"] == "r-1"
    # Where the call came from is the caller's address, as the gateway saw it, and not the gateway's own.
    over_grpc = {line["client"] for line in lines("access") if line["method"] == "gRPC"}
    assert len(over_grpc) == 1 and {line["client"] for line in lines("audit")[2:]} == over_grpc
    assert {line["client"] for line in lines("audit")[:2]} == {"127.0.0.1"}
    passed_on = [
        (line["route"], line["status"], line["principal"]) for line in lines("access") if line["method"] == "gRPC"
    ]
    service = "rlhf.dataset.v1.DatasetService"
    assert sorted(passed_on) == [
        (f"{service}/DeleteDataset", "OK", "user:owner"),
        (f"{service}/ListDatasets", "UNAUTHENTICATED", ""),
        (f"{service}/WriteUpload", "NOT_FOUND", "user:owner"),
    ]
    [written] = [line for line in lines("access") if line["route"] == f"{service}/WriteUpload"]
    assert written["received_bytes"] > len(f"{PARENT}/datasets/d/uploads/u")


def test_lag_is_what_is_written_and_not_stored(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, figure: Figure) -> None:
    now = 100.0
    monkeypatch.setattr("services.mesh.runs.lag.time.monotonic", lambda: now)
    spool = tmp_path / "spool.jsonl"
    lag = Lag(spool)
    with lag.observed():
        assert (figure("rlhf.spool.unread"), figure("rlhf.spool.delay"), figure("rlhf.spool.followed")) == (0, 0, 1)
        spool.write_bytes(b"x" * 30)
        now = 107.0
        assert (figure("rlhf.spool.unread"), figure("rlhf.spool.delay")) == (30, 7)
        lag.stored(20)
        assert (figure("rlhf.spool.unread"), figure("rlhf.spool.delay")) == (10, 7)
        lag.stored(30)
        assert (figure("rlhf.spool.unread"), figure("rlhf.spool.delay")) == (0, 0)
    assert figure("rlhf.spool.unread") is None
