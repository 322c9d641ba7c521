"""Rows that were left out: what they were, where they stood, and why."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from services.dataset.reading.findings import Finding, Problems
from services.mesh.jobs.model import storable

# Beyond these rows are counted and not kept.
MAX_ROWS = 10_000
MAX_BYTES = 32 << 20
MAX_CONTENT_BYTES = 1 << 20
_MAX_MESSAGE_CHARACTERS = 1000


class SkippedRow(msgspec.Struct, frozen=True):
    """`content` is the row as it was in the file; of a table, its values as JSON; None where it could not be cut out.
    `is_base64` where it was no UTF-8. `line` is 0 where the file has no lines."""

    row: int
    line: int
    content: str | None
    is_base64: bool
    is_cut: bool
    findings: list[dict[str, Any]]


@dataclass
class SkippedRows:
    """Hands on the rows that are left out as JSON, as long as there are not too many."""

    sink: Callable[[bytes], None]
    rows: int = 0
    size_bytes: int = 0

    def add(self, problems: Problems, content: bytes | dict[str, Any] | None) -> None:
        if self.rows >= MAX_ROWS or self.size_bytes >= MAX_BYTES:
            return
        encoded = msgspec.json.encode(_skipped(problems, content))
        self.rows += 1
        self.size_bytes += len(encoded)
        self.sink(encoded)


def told(finding: Finding) -> dict[str, Any]:
    """The fields of rlhf.dataset.v1.Finding; a stranger's words are shortened."""
    return {
        "row": finding.row,
        "field": words(finding.field, 300),
        "reason": finding.reason.upper(),
        "message": words(finding.message, _MAX_MESSAGE_CHARACTERS),
        "line": finding.line or 0,
    }


def words(text: str, characters: int) -> str:
    return storable(text if len(text) <= characters else text[: characters - 1] + "…")


def _skipped(problems: Problems, content: bytes | dict[str, Any] | None) -> SkippedRow:
    if isinstance(content, dict):
        content = json.dumps(content, default=str).encode()
    cut = content is not None and len(content) > MAX_CONTENT_BYTES
    raw = None if content is None else content[:MAX_CONTENT_BYTES]
    text, is_base64 = _text(raw, cut)
    findings = [told(finding) for finding in problems.own]
    return SkippedRow(problems.row, problems.line or 0, text, is_base64, cut, findings)


def _text(raw: bytes | None, cut: bool) -> tuple[str | None, bool]:
    if raw is None:
        return None, False
    try:
        return raw.decode(), False
    except UnicodeDecodeError as error:
        if cut and error.start > len(raw) - 4:
            return raw[: error.start].decode(), False
        return base64.b64encode(raw).decode(), True
