"""Trace context, logs and the audit log, without a server."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from services.mesh.errors import InvalidArgument, NotFound
from services.mesh.rpc.interceptors import to_status
from services.mesh.settings import Environment, TelemetrySettings, child_environment, member_environment
from services.mesh.telemetry import logs, metrics, tracing
from services.mesh.telemetry.metrics import Observation
from tests.fix_telemetry import Figure, Spans, hexadecimal

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize(
    "carrier",
    [
        {},
        {"traceparent": ""},
        {"traceparent": f"00-{TRACE}-{SPAN}-01"},
        {"traceparent": f"00-{TRACE}-{SPAN}-00", "tracestate": "vendor=1,other=2"},
        {"traceparent": f"00-{TRACE}-{SPAN}-01-more"},
        {"traceparent": f"01-{TRACE}-{SPAN}-01-more"},
        {"traceparent": f"ff-{TRACE}-{SPAN}-01"},
        {"traceparent": f"00-{'0' * 32}-{SPAN}-01"},
        {"traceparent": f"00-{TRACE}-{'0' * 16}-01"},
        {"traceparent": f"00-{TRACE.upper()}-{SPAN}-01"},
        {"traceparent": f"00-{TRACE}-{SPAN}"},
        {"traceparent": "nonsense"},
    ],
)
def test_context_is_read_as_the_library_reads_it(carrier: dict[str, str]) -> None:
    theirs = trace.get_current_span(TraceContextTextMapPropagator().extract(carrier)).get_span_context()
    ours = trace.get_current_span(tracing.remote(carrier)).get_span_context()
    assert (ours.trace_id, ours.span_id, ours.trace_state) == (theirs.trace_id, theirs.span_id, theirs.trace_state)
    assert ours.trace_flags.sampled == theirs.trace_flags.sampled


def test_without_an_exporter_there_are_ids_and_nothing_is_recorded() -> None:
    assert tracing.ids() is None and tracing.headers() == []
    with tracing.span("first") as first:
        assert not first.is_recording() and not tracing.is_recording()
        version, trace_id, span_id, flags = tracing.traceparent().split("-")
        assert (version, flags) == ("00", "00") and tracing.ids() == (trace_id, span_id)
    with tracing.span("second", traceparent=f"00-{TRACE}-{SPAN}-01"):
        assert tracing.traceparent() == f"00-{TRACE}-{SPAN}-01", "what another process records goes on"
    assert tracing.ids() is None


def test_an_error_in_a_span_is_its_error(spans: Spans) -> None:
    with pytest.raises(ZeroDivisionError), tracing.span("work", traceparent=f"00-{TRACE}-{SPAN}-01"):
        raise ZeroDivisionError
    found = spans.one("work")
    assert hexadecimal(found)[::2] == (TRACE, SPAN) and not found.status.is_ok
    assert [event.name for event in found.events] == ["exception"]


def test_an_unknown_error_tells_its_trace_and_nothing_else() -> None:
    with tracing.span("call"):
        [info] = to_status(ZeroDivisionError("a secret")).details
        assert tracing.trace_id().encode() in info.value and b"secret" not in info.value
        [known] = to_status(NotFound("GONE", "it is gone")).details
        assert tracing.trace_id().encode() not in known.value


@pytest.fixture
def log() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """The lines of a log as a process has it."""
    root, stream = logging.getLogger(), io.StringIO()
    handlers, level, stderr = root.handlers, root.level, sys.stderr
    sys.stderr = stream
    logs.configure_logging("testing")
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    sys.stderr = stderr
    root.handlers = handlers
    root.setLevel(level)
    logging.disable(logging.NOTSET)


def test_a_line_names_the_trace_it_belongs_to(log: Callable[[], list[dict[str, Any]]]) -> None:
    logger = logging.getLogger("services.testing")
    logger.info("outside")
    with tracing.span("call", traceparent=f"00-{TRACE}-{SPAN}-00"):
        logger.info("inside", extra={"job": "j"})
    outside, inside = log()
    assert "trace_id" not in outside
    assert (inside["trace_id"], inside["span_id"], inside["job"]) == (TRACE, SPAN, "j")


def test_no_level_silences_the_audit_log(log: Callable[[], list[dict[str, Any]]]) -> None:
    logging.getLogger().setLevel(logging.CRITICAL)
    logging.disable(logging.CRITICAL)
    logging.getLogger("services").critical("lost")
    logs.audit("user:owner", "DeleteDataset", "projects/p/datasets/d", "OK", peer="ipv4:1")
    [line] = log()
    wanted = {"logger": "audit", "level": "AUDIT", "principal": "user:owner", "verb": "DeleteDataset"}
    wanted |= {"resource": "projects/p/datasets/d", "result": "OK", "peer": "ipv4:1"}
    assert wanted.items() <= line.items()


def test_an_exporter_that_complains_for_ever_is_heard_once(log: Callable[[], list[dict[str, Any]]]) -> None:
    noisy = logging.getLogger("opentelemetry.exporter.testing")
    for attempt in range(100):
        noisy.warning("the collector is away, try %d", attempt)
        logging.getLogger("services.testing").warning("ours, %d", attempt)
    noisy.warning("something else")
    said = [line["message"] for line in log()]
    assert [message for message in said if not message.startswith("ours")] == [
        "the collector is away, try 0",
        "something else",
    ]
    assert len(said) == 102


def test_several_sources_make_one_figure(figure: Figure) -> None:
    def source(value: float, kind: str) -> Callable[[], list[Observation]]:
        return lambda: [Observation(value, {"rlhf.job.kind": kind})]

    with metrics.observed("rlhf.job.open", source(2, "a")), metrics.observed("rlhf.job.open", source(3, "a")):
        assert figure("rlhf.job.open", rlhf__job__kind="a") == 5
        with metrics.observed("rlhf.job.oldest_queued", source(2, "a")):
            with metrics.observed("rlhf.job.oldest_queued", source(9, "a")):
                assert figure("rlhf.job.oldest_queued") == 9
            assert figure("rlhf.job.oldest_queued") == 2
    assert figure("rlhf.job.open") is None


def test_settings_are_checked_together() -> None:
    environment = Environment(
        {"RLHF_TELEMETRY": "otlp,graphite", "RLHF_TRACE_RATIO": "2", "RLHF_PROMETHEUS_LISTEN": "here"}
    )
    TelemetrySettings.read(environment)
    with pytest.raises(InvalidArgument) as caught:
        environment.done()
    fields = [violation.field for violation in caught.value.violations]
    assert fields == ["RLHF_TELEMETRY", "RLHF_PROMETHEUS_LISTEN", "RLHF_TRACE_RATIO"]
    assert TelemetrySettings.read(Environment({})) == TelemetrySettings(otlp=False, prometheus_listen="")
    both = TelemetrySettings.read(Environment({"RLHF_TELEMETRY": "prometheus, OTLP"}))
    assert both.otlp and both.prometheus_listen == "127.0.0.1:0"


def test_a_collectors_key_does_not_reach_a_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "api-key=secret")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317")
    assert "secret" not in str(child_environment())
    assert child_environment()["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://collector:4317"
    assert member_environment(X="1")["OTEL_EXPORTER_OTLP_HEADERS"] == "api-key=secret"


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("services.cli.__main__", ["opentelemetry"]),
        ("services.gateway.app", ["opentelemetry.sdk", "opentelemetry.exporter", "prometheus_client"]),
        ("services.trainer.worker", ["opentelemetry.sdk", "opentelemetry.exporter", "prometheus_client"]),
        ("services.dataset.worker", ["opentelemetry.sdk", "opentelemetry.exporter", "prometheus_client"]),
    ],
)
def test_exporters_are_not_loaded_where_nobody_asked(module: str, unwanted: list[str]) -> None:
    program = f"import sys, {module}; print([name for name in {unwanted} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
