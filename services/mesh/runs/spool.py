"""The spool: an append-only file of JSON lines that a run writes and the worker follows by byte offset.

A run never waits for anybody: it appends, and whoever reads keeps the offset up to which it has read. Several processes
of one run append to the same file; each line is one `write` to an O_APPEND descriptor, which Linux keeps whole.
NaN and the infinities are what training goes wrong with, so they are kept, spelt "NaN", "Infinity" and "-Infinity".
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import msgspec

# Lines that wait for a full disk to have room again; beyond this the oldest are given up and counted.
PENDING_LINES = 10_000
_DRAIN_PAUSE_SECONDS = 0.2
_DISK_REMEDY = "look whether the disk of the home is full or failing; the run itself was not touched"


class Record(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """One line. A service adds records of its own, and reads them with `decoder`."""

    # Nanoseconds since the epoch, when the record was made.
    time_ns: int = msgspec.field(default_factory=time.time_ns)


class Metrics(Record, frozen=True, kw_only=True, tag="metrics"):
    step: int
    values: dict[str, float]


class Phase(Record, frozen=True, kw_only=True, tag="phase"):
    """What the run is doing, in a word (`starting`, `waiting_for_slots`, `training`, …), and how far it is."""

    phase: str
    step: int = 0
    total_steps: int = 0


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One answer of the model; `row_index` is the line of the validation file it answers."""

    row_index: int
    prompt: str
    completion: str
    expected: str | None
    score: float
    parts: dict[str, float]


class SampleBatch(Record, frozen=True, kw_only=True, tag="samples"):
    step: int
    split: str
    samples: list[Sample]


SpanId = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}$")]


class Span(Record, frozen=True, kw_only=True, tag="span"):
    """A part of the run as one of OpenTelemetry's spans; `error` is empty where nothing went wrong."""

    name: Annotated[str, msgspec.Meta(max_length=200)]
    trace_id: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
    span_id: SpanId
    parent_span_id: SpanId
    start_time_ns: Annotated[int, msgspec.Meta(ge=0)]
    end_time_ns: Annotated[int, msgspec.Meta(ge=0)]
    error: str = ""
    attributes: dict[str, str | int | float | bool] = {}


class Software(Record, frozen=True, kw_only=True, tag="software"):
    """Version by package of what the run computes with; see services/models/lineage.py."""

    versions: dict[str, str]


Severity = Literal["info", "warning", "error"]


class Problem(Record, frozen=True, kw_only=True, tag="problem"):
    """A warning of the job. `reason` is a stable UPPER_SNAKE_CASE word, `key` tells apart what shares one; the same of
    both is counted. `step` are the optimizer steps completed, 0 where it belongs to none; `first_step` is given where
    `count` stands for several.
    """

    severity: Severity
    # A spool of before it was there has none.
    reason: Annotated[str, msgspec.Meta(pattern="^[A-Z][A-Z0-9_]{1,62}$")] = "UNSPECIFIED"
    message: str
    remedy: str = ""
    key: str = ""
    step: Annotated[int, msgspec.Meta(ge=0)] = 0
    first_step: Annotated[int, msgspec.Meta(ge=0)] = 0
    count: Annotated[int, msgspec.Meta(ge=1)] = 1


class End(Record, frozen=True, kw_only=True, tag="end"):
    """The last record of a run. `reason` is a stable UPPER_SNAKE_CASE word, empty when the run succeeded."""

    outcome: Literal["succeeded", "stopped", "failed"]
    step: int
    reason: str = ""
    message: str = ""
    remedy: str = ""
    traceback: str = ""


Decoder = msgspec.json.Decoder[Any]


def decoder(*own: type[Record]) -> Decoder:
    """A decoder of the records of every run and of a service's `own`."""
    # strict=False reads "NaN" back into a float.
    return msgspec.json.Decoder(Union[(*_COMMON, *own)], strict=False)


_COMMON = (Metrics, Phase, SampleBatch, Software, Span, Problem, End)
DECODER = decoder()


def encode(record: Record) -> bytes:
    """One line, newline included."""
    return msgspec.json.encode(_spell(msgspec.to_builtins(record))) + b"\n"


def _spell(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: _spell(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_spell(item) for item in value]
    return value


class SpoolWriter:
    """Appends records; never raises into the run.

    What can't be written is kept and tried again with the next record; what had to be given up is counted, and the
    count is reported as a Problem as soon as writing works again.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = os.fspath(path)
        self._lock = threading.Lock()
        self._pending: deque[bytes] = deque()
        self._descriptor: int | None = None
        self._torn = False
        self.lost = 0

    def append(self, record: Record) -> None:
        with self._lock:
            try:
                self._pending.append(encode(record))
            except Exception:
                self.lost += 1
            self._flush()
            while len(self._pending) > PENDING_LINES:
                self._pending.popleft()
                self.lost += 1

    def drain(self, seconds: float) -> bool:
        """Try for so long to write what waits; True once nothing does. After its last record a run has no next."""
        give_up = time.monotonic() + seconds
        while True:
            with self._lock:
                self._flush()
                if not self._pending:
                    return True
            if time.monotonic() > give_up:
                return False
            time.sleep(_DRAIN_PAUSE_SECONDS)

    def _flush(self) -> None:
        try:
            if self.lost:
                self._write(encode(_lost(self.lost)))
                self.lost = 0
            while self._pending:
                self._write(self._pending[0])
                self._pending.popleft()
        except OSError:
            # A full disk or a vanished folder: the lines stay pending.
            self._close()

    def _write(self, line: bytes) -> None:
        if self._descriptor is None:
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        # After a torn write the next line starts on a line of its own, so that only the torn one is broken.
        data = b"\n" + line if self._torn else line
        written = os.write(self._descriptor, data)
        self._torn = written != len(data)
        if self._torn:
            raise OSError(f"wrote {written} of {len(data)} bytes")

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def read_from(
    path: Path | str, offset: int, limit_bytes: int = 1 << 20, reader: Decoder = DECODER
) -> tuple[list[Record], int]:
    """The records of the complete lines from `offset` on, and the offset to go on from.

    About `limit_bytes` are read, more when a single line is longer. A file that does not exist yet is an empty one. A
    broken line is skipped and reported as a Problem in its place.
    """
    try:
        with Path(path).open("rb") as file:
            file.seek(offset)
            data = file.read(limit_bytes)
            while b"\n" not in data and (more := file.read(limit_bytes)):
                data += more
    except FileNotFoundError:
        return [], offset
    end = data.rfind(b"\n") + 1
    records: list[Record] = []
    position = offset
    for line in data[:end].split(b"\n"):
        if line:
            records.append(_decode_or_report(reader, line, position))
        position += len(line) + 1
    return records, offset + end


def read_all(path: Path | str, reader: Decoder = DECODER) -> Iterator[Record]:
    """Every record of the complete lines that are there now."""
    offset = 0
    while True:
        records, following = read_from(path, offset, reader=reader)
        yield from records
        if following == offset:
            return
        offset = following


def _decode_or_report(reader: Decoder, line: bytes, position: int) -> Record:
    try:
        return reader.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        message = f"a broken line of {len(line)} bytes at byte {position} of the spool was skipped: {error}"
        return Problem(severity="warning", reason="RECORD_BROKEN", message=message, remedy=_DISK_REMEDY)


def _lost(count: int) -> Problem:
    message = f"{count} records of the run could not be written; its metrics, samples or warnings have a gap"
    return Problem(severity="warning", reason="RECORDS_LOST", message=message, remedy=_DISK_REMEDY, count=count)
