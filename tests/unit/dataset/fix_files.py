"""Writes rows into every container and compression, and validates files."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from services.dataset.datasets.chunks import Content, version_sha256
from services.dataset.reading.limits import Limits
from services.dataset.uploads.validation import Report, validate

CONTAINERS = ("jsonl", "json", "csv", "parquet")
COMPRESSIONS = ("", ".gz", ".zst")


def jsonl(rows: Sequence[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _csv(rows: Sequence[dict[str, Any]]) -> bytes:
    names = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(names)
    for row in rows:
        cells = (row.get(name, "") for name in names)
        writer.writerow(cell if isinstance(cell, str) else json.dumps(cell) for cell in cells)
    return text.getvalue().encode()


def _parquet(rows: Sequence[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    names = list(dict.fromkeys(key for row in rows for key in row))
    pq.write_table(pa.Table.from_pylist([{name: row.get(name) for name in names} for row in rows]), buffer)
    return buffer.getvalue()


def encode(container: str, rows: Sequence[dict[str, Any]]) -> bytes:
    if container == "jsonl":
        return jsonl(rows)
    if container == "json":
        return json.dumps(list(rows), indent=1).encode()
    return _csv(rows) if container == "csv" else _parquet(rows)


def compress(compression: str, content: bytes) -> bytes:
    if compression == ".gz":
        return gzip.compress(content)
    return zstandard.compress(content) if compression == ".zst" else content


class Checked:
    """A report with what went into the sink."""

    def __init__(self, report: Report, sunk: list[bytes]) -> None:
        self.report = report
        self.sunk = sunk
        self.content = b"".join(sunk)
        named = Content()
        for chunk in sunk:
            named.add(hashlib.sha256(chunk).hexdigest(), chunk)
        self.chunks = named.chunks
        self.version_sha256 = version_sha256(report.format, named.chunks)

    @property
    def rows(self) -> list[Any]:
        return [json.loads(line) for line in self.content.splitlines()]

    @property
    def found(self) -> list[tuple[int, str, str]]:
        return [(finding.row, finding.field, finding.reason.value) for finding in self.report.findings]


def check(
    folder: Path,
    content: bytes,
    name: str = "x.jsonl",
    format_name: str = "messages",
    limits: Limits | None = None,
    **options: Any,
) -> Checked:
    path = folder / "upload"
    path.write_bytes(content)
    sunk: list[bytes] = []
    limits = limits or Limits(findings_of_reason=100)
    report = validate(path, name, format_name, lambda chunk: sunk.append(bytes(chunk)), limits=limits, **options)
    return Checked(report, sunk)


def check_rows(folder: Path, rows: Sequence[Any], format_name: str) -> Checked:
    return check(folder, jsonl(rows), format_name=format_name)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}
