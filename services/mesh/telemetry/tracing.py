"""Spans and how they travel: one trace from an HTTP request over gRPC, events and jobs into a training run.

Context travels as a W3C `traceparent` (https://www.w3.org/TR/trace-context/): in HTTP headers, gRPC metadata, NATS
headers, in the rows of jobs and events, in the plan of a run. A process that exports nothing records nothing, but every
request still has a trace id, so that logs of several processes can be laid side by side.
"""

from __future__ import annotations

import contextlib
import random
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
)
from opentelemetry.util.types import AttributeValue

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

__all__ = ["Context", "Span", "SpanKind", "Written"]

Attributes = Mapping[str, AttributeValue]
HEADERS = ("traceparent", "tracestate")
# What a later version adds stands behind another dash.
_TRACEPARENT = re.compile(
    r"(?P<version>(?!ff)[0-9a-f]{2})-(?P<trace>(?!0{32})[0-9a-f]{32})-(?P<span>(?!0{16})[0-9a-f]{16})"
    r"-(?P<flags>[0-9a-f]{2})(?P<rest>-.*)?"
)


@dataclass(frozen=True)
class _Recorder:
    tracer: trace.Tracer
    processor: SpanProcessor


_recorder: _Recorder | None = None


@dataclass(frozen=True)
class Written:
    """A span that another process has written down. Ids in lower-case hexadecimal, times in nanoseconds since 1970."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_span_id: str
    start_time_ns: int
    end_time_ns: int
    error: str = ""
    attributes: Attributes = field(default_factory=dict)


@contextlib.contextmanager
def recording(tracer: trace.Tracer, processor: SpanProcessor) -> Iterator[None]:
    """From here to the end of the block spans of this process are made by `tracer` and given to `processor`."""
    global _recorder
    before, _recorder = _recorder, _Recorder(tracer, processor)
    try:
        yield
    finally:
        _recorder = before


def is_recording() -> bool:
    """Whether this process exports spans at all."""
    return _recorder is not None


def start(
    name: str, kind: SpanKind = SpanKind.INTERNAL, parent: Context | None = None, attributes: Attributes | None = None
) -> Span:
    """A span below `parent`, by default below the current one; whoever starts it ends it."""
    if _recorder is not None:
        return _recorder.tracer.start_span(name, parent, kind, attributes)
    above = trace.get_current_span(parent)
    if above.get_span_context().is_valid:
        return NonRecordingSpan(above.get_span_context())
    # Not recorded here, so nowhere below either: whoever sees it need not ask whether to.
    fresh = SpanContext(random.getrandbits(128) | 1, random.getrandbits(64) | 1, False, TraceFlags(0))
    return NonRecordingSpan(fresh)


def enter(span: Span) -> None:
    """Make `span` the current one for the rest of this task."""
    contexts.attach(trace.set_span_in_context(span))


@contextlib.contextmanager
def span(
    name: str, kind: SpanKind = SpanKind.INTERNAL, traceparent: str = "", attributes: Attributes | None = None
) -> Iterator[Span]:
    """A current span over the block, below `traceparent` where that is given; an exception is its error."""
    started = start(name, kind, remote({"traceparent": traceparent}) if traceparent else None, attributes)
    with trace.use_span(started, end_on_exit=True):
        yield started


@contextlib.contextmanager
def below(traceparent: str) -> Iterator[None]:
    """What happens in the block belongs to `traceparent`, unless it belongs to a span already."""
    if not traceparent or ids() is not None:
        yield
        return
    token = contexts.attach(remote({"traceparent": traceparent}))
    try:
        yield
    finally:
        contexts.detach(token)


def remote(carrier: Mapping[str, str]) -> Context:
    """The context that headers hold; an empty one where they hold none, or none that is well formed.

    What the library's propagator does, at a fifth of its price: every call passes here.
    """
    found = _TRACEPARENT.fullmatch(carrier.get("traceparent", ""))
    if found is None or (found["version"] == "00" and found["rest"]):
        return Context()
    state = TraceState.from_header([carrier["tracestate"]]) if "tracestate" in carrier else None
    flags = TraceFlags(int(found["flags"], 16) & TraceFlags.SAMPLED)
    above = SpanContext(int(found["trace"], 16), int(found["span"], 16), True, flags, state)
    return trace.set_span_in_context(NonRecordingSpan(above), Context())


def of_metadata(metadata: Iterable[tuple[str, str | bytes]]) -> Context:
    """The context in the metadata of a call."""
    return remote({key: value for key, value in metadata if key in HEADERS and isinstance(value, str)})


def headers(span: Span | None = None) -> list[tuple[str, str]]:
    """What tells the next process of `span`, by default of the current one; nothing when there is none."""
    found = (span or trace.get_current_span()).get_span_context()
    if not found.is_valid:
        return []
    parent = f"00-{found.trace_id:032x}-{found.span_id:016x}-{found.trace_flags:02x}"
    state = [("tracestate", found.trace_state.to_header())] if found.trace_state else []
    return [("traceparent", parent), *state]


def traceparent() -> str:
    """Of the current span; empty when there is none."""
    return dict(headers()).get("traceparent", "")


def ids() -> tuple[str, str] | None:
    """Trace id and span id of the current span, in hexadecimal."""
    found = trace.get_current_span().get_span_context()
    return (f"{found.trace_id:032x}", f"{found.span_id:016x}") if found.is_valid else None


def trace_id() -> str:
    """Of the current span; empty when there is none."""
    found = ids()
    return found[0] if found is not None else ""


def fail(span: Span, why: str) -> None:
    """Say that what `span` covers went wrong, for a reason that is not the caller's."""
    span.set_status(Status(StatusCode.ERROR, why))


def export(written: Written) -> None:
    """Export a span with the ids it was written with; nothing when this process exports none."""
    if _recorder is None:
        return
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan

    def identify(span_id: str) -> SpanContext:
        return SpanContext(int(written.trace_id, 16), int(span_id, 16), True, TraceFlags(TraceFlags.SAMPLED))

    _recorder.processor.on_end(
        ReadableSpan(
            written.name,
            context=identify(written.span_id),
            parent=identify(written.parent_span_id) if written.parent_span_id else None,
            resource=Resource.create({"service.name": written.service, "service.namespace": "rlhf"}),
            attributes=written.attributes,
            status=Status(StatusCode.ERROR, written.error) if written.error else Status(),
            start_time=written.start_time_ns,
            end_time=written.end_time_ns,
        )
    )
