"""A request over HTTP, what it sets off, and the run at the end of it are one trace."""

from __future__ import annotations

import secrets

import grpc
from opentelemetry.trace import SpanKind
from rlhf.dataset.v1 import dataset_service_pb2 as pb
from rlhf.dataset.v1.dataset_service_pb2_grpc import DatasetServiceStub

from services.mesh.runs import spool
from services.trainer.runs.records import read_from
from tests.fix_member import until
from tests.fix_telemetry import Spans, hexadecimal
from tests.integration.telemetry.conftest import PARENT, Mesh, job_of

TRAINER = "rlhf.trainer.v1.TrainerService"
CHANGED = "rlhf.event.v1.TrainingJobChanged"


async def test_from_http_to_the_run(spans: Spans, mesh: Mesh) -> None:
    version = await mesh.upload("d")
    trace, caller = secrets.token_hex(16), secrets.token_hex(8)
    made = await mesh.call("POST", f"/v1/{PARENT}/trainingJobs", job_of(version), traceparent=f"00-{trace}-{caller}-01")
    ended = await mesh.until(f"/v1/{made['name']}", lambda job: "endTime" in job)
    assert ended["state"] == "JOB_STATE_SUCCEEDED", ended
    # QUEUED, RUNNING and SUCCEEDED, each carried to the dataset service.
    await until(lambda: sum(span.name == f"process {CHANGED}" for span in spans.all(trace)) == 3)

    def place(name: str) -> tuple[str, str]:
        _, own, parent = hexadecimal(spans.one(name, trace))
        return own, parent

    http, above = place("POST /v1/{parent=projects/*}/trainingJobs")
    assert above == caller
    create, above = place(f"{TRAINER}/CreateTrainingJob")
    assert above == http
    work, above = place("work on training job")
    assert above == create
    run, above = place("run")
    assert above == work
    training, above = place("training")
    assert above == run
    kinds = [spans.one(name, trace).kind for name in (f"{TRAINER}/CreateTrainingJob", "work on training job", "run")]
    assert kinds == [SpanKind.SERVER, SpanKind.CONSUMER, SpanKind.INTERNAL]

    ids = {hexadecimal(span)[1]: span for span in spans.all(trace)}
    for span in spans.all(trace):
        parent = hexadecimal(span)[2]
        assert parent in ids or parent == caller, f"{span.name} hangs in the air"
        if span.name == f"process {CHANGED}":
            assert ids[parent].name == f"send {CHANGED}" and ids[parent].kind is SpanKind.PRODUCER
    senders = {ids[hexadecimal(s)[2]].name for s in spans.all(trace) if s.name == f"send {CHANGED}"}
    assert senders == {f"{TRAINER}/CreateTrainingJob", "work on training job"}
    # The worker asked the dataset service on the job's behalf.
    calls = [s for s in spans.all(trace) if s.name == "rlhf.dataset.v1.DatasetService/GetDatasetVersion"]
    asked = {hexadecimal(ids[hexadecimal(s)[2]])[2] for s in calls if s.kind is SpanKind.SERVER}
    assert asked == {create, work}
    assert training != run


async def test_spans_of_a_run_are_exported_as_it_wrote_them(spans: Spans, mesh: Mesh) -> None:
    version = await mesh.upload("d")
    trace = secrets.token_hex(16)
    made = await mesh.call(
        "POST", f"/v1/{PARENT}/trainingJobs", job_of(version), traceparent=f"00-{trace}-{'1' * 16}-01"
    )
    await mesh.until(f"/v1/{made['name']}", lambda job: "endTime" in job)
    [path] = mesh.home.glob("trainer/jobs/*/attempts/1/spool.jsonl")
    records, _ = read_from(path, 0)
    written = {r.span_id: r for r in records if isinstance(r, spool.Span)}
    assert {record.name for record in written.values()} == {"starting", "training", "run"}
    assert isinstance(records[-1], spool.End)
    exported = {hexadecimal(span)[1]: span for span in spans.all(trace) if hexadecimal(span)[1] in written}
    assert exported.keys() == written.keys()
    for id_, record in written.items():
        span = exported[id_]
        assert hexadecimal(span) == (record.trace_id, id_, record.parent_span_id)
        assert (span.name, span.start_time, span.end_time) == (record.name, record.start_time_ns, record.end_time_ns)
        assert span.resource.attributes["service.name"] == "trainer.runner"
        assert span.attributes is not None and span.attributes["rlhf.job.name"] == made["name"]


async def test_what_the_caller_does_not_record_is_not_recorded(spans: Spans, mesh: Mesh) -> None:
    """No span anywhere, and none in the run's spool; the ids still travel."""
    version = await mesh.upload("d")
    trace = secrets.token_hex(16)
    made = await mesh.call(
        "POST", f"/v1/{PARENT}/trainingJobs", job_of(version), traceparent=f"00-{trace}-{'1' * 16}-00"
    )
    await mesh.until(f"/v1/{made['name']}", lambda job: "endTime" in job)
    assert spans.all() == []
    [path] = mesh.home.glob("trainer/jobs/*/attempts/1/spool.jsonl")
    assert not [record for record in read_from(path, 0)[0] if isinstance(record, spool.Span)]
    plan = path.with_name("plan.json").read_text()
    assert f'"traceparent": "00-{trace}-' in plan


async def test_a_call_over_grpc_goes_on_through_the_gateway(spans: Spans, mesh: Mesh) -> None:
    trace = secrets.token_hex(16)
    metadata = [("authorization", f"Bearer {mesh.token}"), ("traceparent", f"00-{trace}-{'1' * 16}-01")]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{mesh.gateway.port}") as channel:
        await DatasetServiceStub(channel).ListDatasets(pb.ListDatasetsRequest(parent=PARENT), metadata=metadata)
    first, second = sorted(spans.all(trace), key=lambda span: span.start_time or 0)
    assert first.name == second.name == "rlhf.dataset.v1.DatasetService/ListDatasets"
    assert [hexadecimal(span)[2] for span in (first, second)] == ["1" * 16, hexadecimal(first)[1]]
