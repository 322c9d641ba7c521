"""A real process exports to a real collector and a real page; a collector that is away harms nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2
from prometheus_client.parser import text_string_to_metric_families

from services.supervisor.embedded import free_port
from tests.fix_member import until

TOKEN = "t"
AUTHORIZATION = {"authorization": f"Bearer {TOKEN}"}


@dataclass
class Collector(trace_service_pb2_grpc.TraceServiceServicer, metrics_service_pb2_grpc.MetricsServiceServicer):
    """What it was sent: spans and names of figures, each with the service they came from."""

    port: int = 0
    spans: list[tuple[str, trace_pb2.Span]] = field(default_factory=list)
    figures: set[tuple[str, str]] = field(default_factory=set)
    headers: dict[str, Any] = field(default_factory=dict)

    async def Export(self, request: Any, context: Any) -> Any:
        if isinstance(request, trace_service_pb2.ExportTraceServiceRequest):
            self.headers = dict(context.invocation_metadata())
            for group in request.resource_spans:
                for scope in group.scope_spans:
                    self.spans += [(_service(group.resource), span) for span in scope.spans]
            return trace_service_pb2.ExportTraceServiceResponse()
        for group in request.resource_metrics:
            for scope in group.scope_metrics:
                self.figures |= {(_service(group.resource), metric.name) for metric in scope.metrics}
        return metrics_service_pb2.ExportMetricsServiceResponse()


def _service(resource: Any) -> str:
    return next(one.value.string_value for one in resource.attributes if one.key == "service.name")


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    found, server = Collector(), grpc.aio.server()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(found, server)
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(found, server)
    found.port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield found
    await server.stop(0)


@dataclass
class Gateway:
    http: httpx.AsyncClient
    page: str
    process: asyncio.subprocess.Process
    log: Path

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    async def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            return await self.process.wait()


@contextlib.asynccontextmanager
async def gateway(home: Path, **environment: str) -> AsyncIterator[Gateway]:
    """`python -m services.gateway` with no service behind it."""
    (home / "token").write_text(TOKEN)
    http, page, ready = free_port(), free_port(), home / "ready"
    values = {key: value for key, value in os.environ.items() if not key.startswith(("RLHF_", "OTEL_"))}
    values |= {
        "RLHF_HOME": str(home),
        "RLHF_GATEWAY_HTTP_LISTEN": f"127.0.0.1:{http}",
        "RLHF_PROMETHEUS_LISTEN": f"127.0.0.1:{page}",
        "RLHF_DATASET_TARGET": f"127.0.0.1:{free_port()}",
        "RLHF_READY_FILE": str(ready),
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "OTEL_METRIC_EXPORT_INTERVAL": "200",
    }
    command = (sys.executable, "-m", "services.gateway")
    with (home / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*command, env=values | environment, stderr=log)
    try:
        await until(ready.exists, 60)
        url = f"http://127.0.0.1:{http}"
        async with httpx.AsyncClient(base_url=url, headers=AUTHORIZATION, trust_env=False, timeout=30) as client:
            yield Gateway(client, f"http://127.0.0.1:{page}/metrics", process, home / "log")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_a_collector_gets_spans_and_figures(tmp_path: Path, collector: Collector) -> None:
    endpoint = f"http://127.0.0.1:{collector.port}"
    async with gateway(
        tmp_path,
        RLHF_TELEMETRY="otlp",
        OTEL_EXPORTER_OTLP_ENDPOINT=endpoint,
        OTEL_EXPORTER_OTLP_HEADERS="api-key=k",
        OTEL_RESOURCE_ATTRIBUTES="deployment.environment.name=testing",
    ) as running:
        trace = secrets.token_hex(16)
        parent = {"traceparent": f"00-{trace}-{'1' * 16}-01"}
        assert (await running.http.get("/v1/projects/p/datasets/d", headers=parent)).status_code == 503
        await until(lambda: bool(collector.spans))
        await until(lambda: ("gateway", "http.server.request.duration") in collector.figures)
        [(service, span)] = [one for one in collector.spans if one[1].trace_id.hex() == trace]
        assert (service, span.name) == ("gateway", "GET /v1/{name=projects/*/datasets/*}")
        assert span.parent_span_id.hex() == "1" * 16 and span.status.code == trace_pb2.Status.STATUS_CODE_ERROR
        assert collector.headers["api-key"] == "k"
        with pytest.raises(httpx.ConnectError):
            await running.http.get(running.page)
        # What happened last is sent before the process ends.
        last = secrets.token_hex(16)
        await running.http.get("/v1/none", headers={"traceparent": f"00-{last}-{'1' * 16}-01"})
        assert await running.stop() == 0
        assert last in {span.trace_id.hex() for _, span in collector.spans}


async def test_the_share_of_traces_that_is_recorded(tmp_path: Path, collector: Collector) -> None:
    """Of the gateway's own none; what comes recorded stays recorded."""
    endpoint = f"http://127.0.0.1:{collector.port}"
    async with gateway(
        tmp_path, RLHF_TELEMETRY="otlp", RLHF_TRACE_RATIO="0", OTEL_EXPORTER_OTLP_ENDPOINT=endpoint
    ) as running:
        for _ in range(20):
            await running.http.get("/v1/none")
        trace = secrets.token_hex(16)
        await running.http.get("/v1/none", headers={"traceparent": f"00-{trace}-{'1' * 16}-01"})
        assert await running.stop() == 0
    assert [span.trace_id.hex() for _, span in collector.spans] == [trace]


async def test_prometheus_reads_the_page(tmp_path: Path) -> None:
    async with gateway(tmp_path, RLHF_TELEMETRY="prometheus") as running:
        for _ in range(3):
            await running.http.get("/v1/projects/p/datasets")
        await running.http.get("/v1/none", headers={"authorization": "Bearer wrong"})
        async with httpx.AsyncClient(trust_env=False) as scraper:
            page = await scraper.get(running.page)
        samples = [sample for family in text_string_to_metric_families(page.text) for sample in family.samples]
        route = "/v1/{parent=projects/*}/datasets"
        counted = {
            (sample.labels["http_route"], sample.labels["http_response_status_code"]): sample.value
            for sample in samples
            if sample.name == "http_server_request_duration_seconds_count"
        }
        assert counted == {(route, "503"): 3, ("", "401"): 1}
        buckets = [sample for sample in samples if sample.name == "http_server_request_duration_seconds_bucket"]
        assert {sample.labels["le"] for sample in buckets} > {"0.005", "0.01", "+Inf"}
        assert any(sample.name == "process_resident_memory_bytes" and sample.value > 1e6 for sample in samples)
        assert "projects/p" not in page.text and TOKEN not in [*running.page.split("/")]
        assert not [line for line in running.lines() if line["level"] == "ERROR"]
        assert await running.stop() == 0


async def test_a_collector_that_is_away_harms_nothing(tmp_path: Path) -> None:
    """Every call is answered, the log says it a few times and not for each call, and the process stops when told."""
    endpoint = f"http://127.0.0.1:{free_port()}"
    async with gateway(
        tmp_path,
        RLHF_TELEMETRY="otlp",
        RLHF_GATEWAY_ACCESS_LOG="0",
        OTEL_EXPORTER_OTLP_ENDPOINT=endpoint,
        OTEL_EXPORTER_OTLP_TIMEOUT="1",
        # Small, so that it overflows.
        OTEL_BSP_MAX_QUEUE_SIZE="64",
        OTEL_BSP_MAX_EXPORT_BATCH_SIZE="32",
    ) as running:

        def complaints() -> list[dict[str, Any]]:
            return [line for line in running.lines() if line["logger"].startswith("opentelemetry")]

        answers = []
        for _ in range(3):
            answers += await asyncio.gather(*(running.http.get("/v1/none") for _ in range(100)))
            await until(lambda: bool(complaints()))
        assert [answer.status_code for answer in answers] == [404] * 300
        assert 1 <= len(complaints()) < 12
        assert await running.stop() == 0
        assert len(complaints()) < 16


async def test_nothing_is_exported_unless_asked(tmp_path: Path, collector: Collector) -> None:
    async with gateway(tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{collector.port}") as running:
        headers = {"traceparent": f"00-{secrets.token_hex(16)}-{'1' * 16}-01"}
        assert (await running.http.get("/v1/none", headers=headers)).status_code == 404
        with pytest.raises(httpx.ConnectError):
            await running.http.get(running.page)
        assert await running.stop() == 0
    assert (collector.spans, collector.figures) == ([], set())
    [line] = [line for line in running.lines() if line["logger"] == "access"]
    assert line["trace_id"] == headers["traceparent"].split("-")[1], "logs still name the trace"
