"""Where spans and figures go: to a collector by OTLP over gRPC, to a page that Prometheus scrapes, or nowhere.

Exporters are imported only where they are asked for. Each works in a thread of its own: a collector that is away costs
what was not sent, never a call.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

from services.mesh.settings import TelemetrySettings
from services.mesh.telemetry import metrics, tracing

log = logging.getLogger(__name__)

# What is not sent by then when a process stops is given up.
_LAST_SECONDS = 3.0


@contextlib.asynccontextmanager
async def exporting(process: str, settings: TelemetrySettings) -> AsyncIterator[None]:
    """Export what happens in the block. Raises OSError when the page's address is taken."""
    async with contextlib.AsyncExitStack() as stack:
        if settings.otlp:
            stack.push_async_callback(_in_time, _record(stack, process, settings))
        if settings.otlp or settings.prometheus_listen:
            stack.push_async_callback(_in_time, _count(stack, process, settings))
        yield


def _record(stack: contextlib.AsyncExitStack, process: str, settings: TelemetrySettings) -> Callable[[], Any]:
    """Spans to the collector. Returns how to send the last of them."""
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    processor = BatchSpanProcessor(OTLPSpanExporter())
    sampler = ParentBased(TraceIdRatioBased(settings.trace_ratio))
    provider = TracerProvider(sampler, _resource(process), shutdown_on_exit=False)
    provider.add_span_processor(processor)
    stack.enter_context(tracing.recording(provider.get_tracer("rlhf"), processor))
    return provider.shutdown


def _count(stack: contextlib.AsyncExitStack, process: str, settings: TelemetrySettings) -> Callable[[], Any]:
    """Figures to the collector, to a page, or to both. Returns how to send the last of them."""
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader

    readers: list[MetricReader] = []
    if settings.otlp:
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter

        readers.append(PeriodicExportingMetricReader(OTLPMetricExporter()))
    if settings.prometheus_listen:
        readers.append(_page(stack, settings.prometheus_listen))
    provider = MeterProvider(readers, _resource(process), shutdown_on_exit=False)
    stack.enter_context(metrics.counting(provider.get_meter("rlhf")))
    return provider.shutdown


def _page(stack: contextlib.AsyncExitStack, listen: str) -> Any:
    """`/metrics`, also with what the process takes of memory, processor and files."""
    from opentelemetry.exporter.prometheus import PrometheusMetricReader
    from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server

    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    host, _, port = listen.rpartition(":")
    server, thread = start_http_server(int(port), host.strip("[]"), registry)
    log.info("figures are at port %d", server.server_port, extra={"port": server.server_port})

    def close() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    stack.callback(close)
    return PrometheusMetricReader(scope_info_enabled=False, registry=registry)


def _resource(process: str) -> Any:
    from opentelemetry.sdk.resources import Resource

    identity = {"service.name": process, "service.namespace": "rlhf", "service.instance.id": str(uuid.uuid4())}
    return Resource.create(identity)


async def _in_time(shutdown: Callable[[], Any]) -> None:
    """Left to itself the library waits up to half a minute for a collector that is away."""
    loop, done = asyncio.get_running_loop(), asyncio.Event()

    def work() -> None:
        shutdown()
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(done.set)

    # Not in the loop's executor, whose threads the end of the process waits for.
    threading.Thread(target=work, name="telemetry", daemon=True).start()
    try:
        async with asyncio.timeout(_LAST_SECONDS):
            await done.wait()
    except TimeoutError:
        log.warning("the last traces and figures could not be exported in %.0f s", _LAST_SECONDS)
