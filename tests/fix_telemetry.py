"""Fixtures: what this process records of traces and figures, kept in memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from services.mesh.telemetry import metrics, tracing

# The value of a figure (the count, of a histogram) where all these attributes hold, summed up; None where none does.
Figure = Callable[..., float | None]


class Spans:
    """What has ended so far."""

    def __init__(self, exporter: InMemorySpanExporter) -> None:
        self._exporter = exporter

    def all(self, trace_id: str = "") -> list[ReadableSpan]:
        found = self._exporter.get_finished_spans()
        return [span for span in found if not trace_id or hexadecimal(span)[0] == trace_id]

    def one(self, name: str, trace_id: str = "") -> ReadableSpan:
        [found] = [span for span in self.all(trace_id) if span.name == name]
        return found


@pytest.fixture
def spans() -> Iterator[Spans]:
    exporter = InMemorySpanExporter()
    processor = SimpleSpanProcessor(exporter)
    # Of what begins here nothing: a test that asks for a trace says so.
    provider = TracerProvider(ParentBased(TraceIdRatioBased(0.0)), shutdown_on_exit=False)
    provider.add_span_processor(processor)
    with tracing.recording(provider.get_tracer("test"), processor):
        yield Spans(exporter)


@pytest.fixture
def figure() -> Iterator[Figure]:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)

    def value(name: str, **attributes: Any) -> float | None:
        wanted = {key.replace("__", "."): one for key, one in attributes.items()}
        data = reader.get_metrics_data()
        found = [
            point.count if hasattr(point, "count") else point.value
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
            if wanted.items() <= dict(point.attributes or {}).items()
        ]
        return sum(found) if found else None

    with metrics.counting(provider.get_meter("test")):
        yield value


@pytest.fixture
def lines() -> Iterator[Callable[[str], list[dict[str, Any]]]]:
    """What a logger has said so far, with everything that `extra` held, whatever its level is set to."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    root = logging.getLogger()
    root.addHandler(handler)
    access = logging.getLogger("access")
    level = access.level
    access.setLevel(logging.INFO)
    yield lambda name: [record.__dict__ for record in records if record.name == name]
    access.setLevel(level)
    root.removeHandler(handler)


def hexadecimal(span: ReadableSpan) -> tuple[str, str, str]:
    """Trace id, span id and the parent's span id, empty where there is none."""
    assert span.context is not None
    parent = f"{span.parent.span_id:016x}" if span.parent else ""
    return f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}", parent
