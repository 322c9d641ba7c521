"""Checks every row of an uploaded file and writes the canonical ones into chunks, streaming, in constant memory.

`validate` is what the worker calls. It raises nothing for bad rows: they are findings in the report, and a caller that
wants all or nothing looks at `Report.ok`. It raises UnreadableFile for a file that cannot be read as rows at all.
pyarrow allocates what a Parquet page claims (at most 2 GiB); a worker that reads strangers' files should also run
under a memory limit of the operating system.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from services.dataset.containers.batches import BLOCK_BYTES
from services.dataset.datasets.chunks import TARGET_BYTES, ChunkWriter, Sink
from services.dataset.datasets.statistics import Collector, Statistics
from services.dataset.formats import formats
from services.dataset.reading.field_mapping import FieldMapping
from services.dataset.reading.file_reader import open_rows
from services.dataset.reading.findings import Finding, Findings, Problems, UnreadableFile, shown
from services.dataset.reading.limits import Limits
from services.dataset.reading.mapping_suggestion import suggest
from services.dataset.reading.row_reader import RowReader
from services.dataset.uploads.options import UploadOptions
from services.dataset.uploads.skipped_rows import SkippedRows
from services.dataset.uploads.validation_run import Part, Run


@dataclass(frozen=True)
class Report:
    """What one file holds. `rows` = `valid_rows` + `invalid_rows`; a bad row may have several findings. `statistics`
    and `size_bytes` are of the valid rows that are not held out."""

    format: str
    container: str
    compression: str
    rows: int
    valid_rows: int
    invalid_rows: int
    held_out_rows: int
    """Of the valid ones, those that a split gives to another dataset."""
    findings: tuple[Finding, ...]
    finding_count: int
    findings_by_reason: dict[str, int]
    spellings: dict[str, int]
    kept_keys: dict[str, int]
    """How many rows had which key that no format reads: it went to the row's metadata."""
    suggested_mapping: dict[str, str]
    """Under which the first rows that tell no spelling would be valid."""
    duplicates: int
    duplicates_exact: bool
    size_bytes: int
    statistics: Statistics
    held_out_statistics: Statistics | None

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


def _discard(content: bytes | memoryview) -> None:
    """For a caller who does not want it."""


def validate(
    path: Path,
    file_name: str,
    format_name: str,
    sink: Sink,
    *,
    options: UploadOptions | None = None,
    held_out_sink: Sink = _discard,
    skipped_sink: Callable[[bytes], None] = _discard,
    limits: Limits | None = None,
    on_progress: OnProgress | None = None,
    target_bytes: int = TARGET_BYTES,
    block_bytes: int = BLOCK_BYTES,
) -> Report:
    """Checks the file at `path`, which its owner calls `file_name`, as rows of `format_name`.

    `sink` gets each chunk as it fills, in order; the same chunk may come twice; `held_out_sink` likewise the rows that
    a split holds out, `skipped_sink` each row that is wrong (a SkippedRow as JSON) where the options let some be.
    `on_progress` is called about once a block and may raise to stop; what it or a sink raises goes through. Raises
    UnreadableFile, and InvalidArgument for an unknown format.
    """
    limits, options = limits or Limits(), options or UploadOptions()
    entry = formats.get(format_name)
    findings = Findings(limits.findings, limits.findings_of_reason)
    mapping = FieldMapping(options.field_mapping)
    on_invalid = SkippedRows(skipped_sink).add if options.skips_invalid else _ignore
    reader = RowReader(entry, findings, limits, mapping, on_invalid)
    held_out = Part(ChunkWriter(held_out_sink, target_bytes), Collector(entry.turns)) if options.split else None
    kept = Part(ChunkWriter(sink, target_bytes), Collector(entry.turns))
    run = Run(reader, findings, kept, held_out, options.split, on_invalid)
    with open_rows(path, file_name, limits, block_bytes, options.field_mapping) as file:
        for batch in file.batches:
            run.add(batch)
            if on_progress:
                at = Progress(file.stream.bytes_in, file.stream.compressed_bytes, run.rows, findings.total)
                on_progress(at)
    _check_whole(run, mapping)
    suggested = {} if mapping.names else suggest(entry, reader.unrecognised)
    return _report(run, suggested, format_name, file.container, file.compression)


def _check_whole(run: Run, mapping: FieldMapping) -> None:
    """Raises UnreadableFile where the file as a whole is not what its owner thinks."""
    if not run.rows:
        raise UnreadableFile("NO_ROWS", "the file holds no rows")
    if mapping.unused:
        keys = ", ".join(map(shown, mapping.unused))
        raise UnreadableFile("UNUSED_MAPPING", f"no row has the key {keys}, which field_mapping names")


def _ignore(problems: Problems, content: bytes | dict[str, Any] | None) -> None:
    """Rows that are wrong are findings, and no more."""


def _report(run: Run, suggested: dict[str, str], format_name: str, container: str, compression: str) -> Report:
    """What was found; flushes the last chunks."""
    parts = [part for part in (run.kept, run.held_out) if part is not None]
    for part in parts:
        part.writer.finish()
    valid = sum(part.writer.rows for part in parts)
    statistics = run.kept.collector.result()
    held_out = run.held_out.collector.result() if run.held_out else None
    return Report(
        format=format_name,
        container=container,
        compression=compression,
        rows=run.rows,
        valid_rows=valid,
        invalid_rows=run.rows - valid,
        held_out_rows=run.held_out.writer.rows if run.held_out else 0,
        findings=tuple(run.findings.kept),
        finding_count=run.findings.total,
        findings_by_reason=dict(sorted(run.findings.counts.items())),
        spellings=dict(sorted(run.spellings.items())),
        kept_keys=dict(sorted(run.kept_keys.items())),
        suggested_mapping=suggested,
        duplicates=statistics.duplicates + (held_out.duplicates if held_out else 0),
        duplicates_exact=statistics.duplicates_exact and (held_out is None or held_out.duplicates_exact),
        size_bytes=run.kept.writer.size_bytes,
        statistics=statistics,
        held_out_statistics=held_out,
    )
