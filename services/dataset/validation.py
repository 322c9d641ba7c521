"""Checks every row of an uploaded file and writes the canonical ones into chunks, streaming, in constant memory.

`validate` is what the worker calls. It raises nothing for bad rows: they are findings in the report, and a caller that
wants all or nothing looks at `Report.ok`. It raises UnreadableFile for a file that cannot be read as rows at all.
pyarrow allocates what a Parquet page claims (at most 2 GiB); a worker that reads strangers' files should also run
under a memory limit of the operating system.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from services.dataset.chunks import TARGET_BYTES, ChunkWriter, Sink
from services.dataset.containers.batches import BLOCK_BYTES, Batch, Broken, Lines, Texts, Values
from services.dataset.findings import Finding, Findings, Problems, UnreadableFile
from services.dataset.formats import formats
from services.dataset.limits import Limits
from services.dataset.reading import open_rows
from services.dataset.rowreading import Result, RowReader
from services.dataset.statistics import Collector, Statistics


@dataclass(frozen=True)
class Report:
    """What one file holds. `rows` = `valid_rows` + `invalid_rows`; a bad row may have several findings."""

    format: str
    container: str
    compression: str
    rows: int
    valid_rows: int
    invalid_rows: int
    findings: tuple[Finding, ...]
    finding_count: int
    findings_by_reason: dict[str, int]
    spellings: dict[str, int]
    size_bytes: int
    statistics: Statistics

    @property
    def ok(self) -> bool:
        return self.finding_count == 0


@dataclass(frozen=True)
class Progress:
    """`bytes_read` of the `bytes_total` of the uploaded file (compressed, if it is)."""

    bytes_read: int
    bytes_total: int
    rows: int
    findings: int


OnProgress: TypeAlias = Callable[[Progress], None]


def validate(
    path: Path,
    file_name: str,
    format_name: str,
    sink: Sink,
    *,
    limits: Limits | None = None,
    on_progress: OnProgress | None = None,
    target_bytes: int = TARGET_BYTES,
    block_bytes: int = BLOCK_BYTES,
) -> Report:
    """Checks the file at `path`, which its owner calls `file_name`, as rows of `format_name`.

    `sink` gets each chunk as it fills, in order; the same chunk may come twice. `on_progress` is called about once a
    block and may raise to stop; what it or the sink raises goes through. Raises UnreadableFile, and InvalidArgument
    for an unknown format.
    """
    limits = limits or Limits()
    entry = formats.get(format_name)
    findings, writer = Findings(limits.findings), ChunkWriter(sink, target_bytes)
    run = _Run(RowReader(entry, findings, limits), findings, writer, Collector(entry.turns))
    with open_rows(path, file_name, limits, block_bytes) as file:
        for batch in file.batches:
            run.add(batch)
            if on_progress:
                at = Progress(file.stream.bytes_in, file.stream.compressed_bytes, run.rows, findings.total)
                on_progress(at)
    if not run.rows:
        raise UnreadableFile("NO_ROWS", "the file holds no rows")
    return run.report(format_name, file.container, file.compression)


class _Run:
    """The running totals of one validation."""

    def __init__(self, reader: RowReader, findings: Findings, writer: ChunkWriter, collector: Collector) -> None:
        self._reader, self._findings, self._writer = reader, findings, writer
        self.collector = collector
        self.rows = 0
        self.spellings: Counter[str] = Counter()

    def add(self, batch: Batch) -> None:
        if isinstance(batch, Broken):
            self.rows += 1
            Problems(self._findings, self.rows, batch.line).add("", batch.reason, batch.message)
            return
        result = self._read(batch)
        self.rows += result.seen
        self.spellings.update(result.spellings)
        self.collector.add(result.rows, result.encoded)
        self._writer.add(result.encoded)

    def _read(self, batch: Lines | Texts | Values) -> Result:
        if isinstance(batch, Lines):
            return self._reader.lines(batch, self.rows + 1)
        if isinstance(batch, Texts):
            return self._reader.texts(batch, self.rows + 1)
        return self._reader.values(batch, self.rows + 1)

    def report(self, format_name: str, container: str, compression: str) -> Report:
        """What was found; flushes the last chunk."""
        self._writer.finish()
        return Report(
            format=format_name,
            container=container,
            compression=compression,
            rows=self.rows,
            valid_rows=self._writer.rows,
            invalid_rows=self.rows - self._writer.rows,
            findings=tuple(self._findings.kept),
            finding_count=self._findings.total,
            findings_by_reason=dict(sorted(self._findings.counts.items())),
            spellings=dict(sorted(self.spellings.items())),
            size_bytes=self._writer.size_bytes,
            statistics=self.collector.result(),
        )
