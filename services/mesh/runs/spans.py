"""The spans of a run: written into its spool by the run, exported by whoever follows it.

A run opens no connection, so it cannot export by itself; and it needs no library to draw random ids.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping
from pathlib import Path

from services.mesh.runs.spool import End, Phase, Record, Span, SpoolWriter
from services.mesh.telemetry import tracing

# W3C trace context, level 1: version, trace id, parent id, flags, whose lowest bit says whether the trace is recorded.
_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")


class TracedSpool(SpoolWriter):
    """A spool that draws spans from what it is given: one for the run, below it one for each of its phases.

    Nothing is drawn unless `begin` names a trace that is recorded.
    """

    def __init__(self, path: Path | str) -> None:
        super().__init__(path)
        self._began_ns = time.time_ns()
        self._phase: Phase | None = None
        self._phase_id = self._run_id = self._trace_id = self._parent_id = ""
        self._attributes: dict[str, str | int | float | bool] = {}

    def begin(self, traceparent: str, attributes: Mapping[str, str | int | float | bool]) -> None:
        """Say which trace the run belongs to, and what its spans tell of it."""
        found = _TRACEPARENT.fullmatch(traceparent)
        if found is None or not int(found[3], 16) & 1:
            return
        self._trace_id, self._parent_id = found[1], found[2]
        self._run_id, self._phase_id = _new_id(), _new_id()
        self._attributes = dict(attributes)

    def append(self, record: Record) -> None:
        if isinstance(record, Phase) and (self._phase is None or record.phase != self._phase.phase):
            self._end_phase(record.time_ns, "")
            self._phase = record
            self._phase_id = _new_id()
        elif isinstance(record, End):
            # Before it: it is the last record of a run.
            error = record.reason or "failed" if record.outcome == "failed" else ""
            self._end_phase(record.time_ns, error)
            self._write_span("run", self._run_id, self._parent_id, self._began_ns, record.time_ns, error)
        super().append(record)

    def _end_phase(self, time_ns: int, error: str) -> None:
        if self._phase is not None:
            name = self._phase.phase.replace("_", " ")
            self._write_span(name, self._phase_id, self._run_id, self._phase.time_ns, time_ns, error)
            self._phase = None

    def _write_span(self, name: str, id_: str, parent: str, start_ns: int, end_ns: int, error: str) -> None:
        if not self._trace_id:
            return
        super().append(
            Span(
                name=name,
                trace_id=self._trace_id,
                span_id=id_,
                parent_span_id=parent,
                start_time_ns=start_ns,
                end_time_ns=end_ns,
                error=error,
                attributes=self._attributes,
            )
        )


def export(span: Span, service: str) -> None:
    """Export what a run of `service` has written, ids and times as they are."""
    tracing.export(
        tracing.Written(
            service=service,
            name=span.name,
            trace_id=span.trace_id,
            span_id=span.span_id,
            parent_span_id=span.parent_span_id,
            start_time_ns=span.start_time_ns,
            end_time_ns=span.end_time_ns,
            error=span.error,
            attributes=span.attributes,
        )
    )


def _new_id() -> str:
    return secrets.token_hex(8)
