"""Datasets, versions, uploads and rows as a person reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from services.cli import display, output, upload_options
from services.cli.output import Column
from services.client import references

if TYPE_CHECKING:
    from rlhf.dataset.v1.dataset_pb2 import Dataset, DatasetVersion, SkippedRow, Upload, ValidationReport
    from rlhf.dataset.v1.dataset_service_pb2 import Row

DATASETS = (
    Column("DATASET", lambda dataset: references.short(dataset.name), whole=True),
    Column("FORMAT", lambda dataset: dataset.format),
    Column("VERSION", lambda dataset: dataset.latest_version.rpartition("/")[2] or "none", right=True),
    Column("LABELS", lambda dataset: display.labels(dict(dataset.labels))),
    Column("CREATED", lambda dataset: display.age(dataset.create_time)),
)
VERSIONS = (
    Column("VERSION", lambda version: references.short(version.name), whole=True),
    Column("ROWS", lambda version: f"{version.row_count:,}", right=True),
    Column("SIZE", lambda version: display.size(version.size_bytes), right=True),
    Column("FROM", lambda version: version.source_file_name),
    Column("CREATED", lambda version: display.age(version.create_time)),
    Column("SHA-256", lambda version: version.sha256[:12]),
)
FORMATS = (
    Column("FORMAT", lambda item: item.entry.id, whole=True),
    Column("SPELLINGS", lambda item: ", ".join(item.spellings)),
    Column("A ROW IS", lambda item: item.entry.summary),
)
_FINDINGS = (
    Column("LINE", lambda finding: str(finding.line or ""), right=True),
    Column("ROW", lambda finding: str(finding.row), right=True),
    Column("FIELD", lambda finding: finding.field or "(row)"),
    Column("REASON", lambda finding: finding.reason),
    Column("WHAT IS WRONG", lambda finding: finding.message),
)
_CELL_WIDTH = 400
_SHOWN_NAMES = 12
_SKIPPED = (
    Column("LINE", lambda row: str(row.line or ""), right=True),
    Column("ROW", lambda row: str(row.row), right=True),
    Column("WHY", lambda row: "; ".join(f"{each.field or '(row)'} {each.message}" for each in row.findings)),
    Column("CONTENT", lambda row: display.one_line(row.content or repr(row.raw_content), _CELL_WIDTH)),
)


def dataset_facts(dataset: Dataset) -> list[tuple[str, str]]:
    return [
        ("dataset", references.short(dataset.name)),
        ("title", dataset.display_name),
        ("format", dataset.format),
        ("labels", display.labels(dict(dataset.labels))),
        ("created", display.moment(dataset.create_time)),
    ]


def version_facts(version: DatasetVersion) -> list[tuple[str, str]]:
    facts = [
        ("version", references.short(version.name)),
        ("format", version.format),
        ("rows", f"{version.row_count:,}"),
        ("size", display.size(version.size_bytes)),
        ("from", version.source_file_name),
        ("created", display.moment(version.create_time)),
        ("sha256", version.sha256),
    ]
    return facts + _statistics(output.as_json(version).get("statistics") or {})


def _statistics(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    facts: list[tuple[str, str]] = []
    for key, value in sorted(values.items(), key=lambda item: (isinstance(item[1], Mapping), item[0])):
        if isinstance(value, Mapping):
            facts.extend(_statistics(value, f"{prefix}{key}."))
        else:
            facts.append((f"{prefix}{key}", display.number(value) if isinstance(value, float) else json.dumps(value)))
    return facts


def show_upload(upload: Upload, output_format: str) -> None:
    """What became of a file: its version, or what is wrong with its rows."""
    if output_format == "json":
        output.write_json(output.as_json(upload))
        return
    report = upload.report
    if upload.state == upload.STATE_SUCCEEDED:
        output.show(output.grid(_taken(upload)))
        return
    output.say(f"{upload.file_name} was not taken: {upload.error.message or upload.error.reason}", style="bold")
    if report.findings:
        output.show(output.table(_FINDINGS, report.findings))
        if report.finding_count > len(report.findings):
            findings = f"{len(report.findings)} of {report.finding_count:,} findings"
            output.hint(f"{findings}, the first of each reason: {_by_count(report.finding_count_by_reason)}")
    if skip := _skip_hint(report):
        output.hint(skip)
    if report.suggested_field_mapping:
        output.say(f"These keys would fit: {upload_options.map_flag(report.suggested_field_mapping)}")


def _skip_hint(report: ValidationReport) -> str:
    """How to take the other rows; empty where none or most are wrong, since then something else is amiss."""
    wrong, rows = report.invalid_row_count, report.row_count
    if not 0 < wrong * 2 <= rows:
        return ""
    others = display.counted(rows - wrong, "row", "rows")
    return f"`--skip-invalid {wrong}` takes the other {others}, and keeps the wrong ones aside"


def _taken(upload: Upload) -> list[tuple[str, str]]:
    """Counts of the rows of a file that was taken."""
    report = upload.report
    rows = report.row_count - report.invalid_row_count - report.split_row_count
    spellings = ", ".join(f"{count:,} {spelling}" for spelling, count in report.row_count_by_spelling.items())
    facts = [
        ("version", references.short(upload.dataset_version)),
        ("taken", f"{rows:,} rows" + (f" ({spellings})" if spellings else "")),
    ]
    if upload.split_dataset_version:
        facts.append(("held out", f"{report.split_row_count:,} rows: {references.short(upload.split_dataset_version)}"))
    if report.invalid_row_count:
        dataset = references.short(upload.name.partition("/uploads/")[0])
        counted = f"{report.invalid_row_count:,} rows: {_by_count(report.finding_count_by_reason)}"
        facts.append(("left out", f"{counted}; see `rlhf dataset skipped {dataset}`"))
    if report.duplicate_row_count:
        about = "" if report.duplicate_row_count_exact else "about "
        facts.append(("duplicates", f"{about}{report.duplicate_row_count:,} rows are equal to an earlier one"))
    if report.row_count_by_metadata_key:
        kept = f"{_by_count(report.row_count_by_metadata_key)}: not trained on"
        facts.append(("kept as metadata", kept))
    return facts


def _by_count(counts: Mapping[str, int]) -> str:
    """The most frequent first; of many names not all."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{count:,} {display.one_line(name, 60)}" for name, count in ordered[:_SHOWN_NAMES])
    return shown + (", …" if len(ordered) > _SHOWN_NAMES else "")


def show_skipped(rows: Sequence[SkippedRow], output_format: str) -> None:
    if output_format == "json":
        for row in rows:
            output.write_json_line(output.as_json(row))
    elif rows:
        output.show(output.table(_SKIPPED, rows))
    else:
        output.say("no rows were left out")


def show_rows(rows: Sequence[Row], output_format: str) -> None:
    if output_format == "json":
        for row in rows:
            output.write_json_line(_plain(output.as_json(row)["value"]))
    elif rows:
        columns = [
            Column("ROW", lambda row: str(row.row_index), right=True),
            Column("CONTENT", lambda row: _content(output.as_json(row)["value"])),
        ]
        output.show(output.table(columns, rows))
    else:
        output.say("no rows here")


def _content(row: Mapping[str, Any]) -> str:
    """A row on a few lines: one a turn, then the answer."""
    lines = []
    for part in ("messages", "prompt", "chosen", "rejected"):
        title = "" if part in ("messages", "prompt") else f"{part} · "
        lines += [f"{title}{turn['role']}: {turn['content']}" for turn in row.get(part) or ()]
    if row.get("answer") is not None:
        lines.append(f"answer: {row['answer']}")
    if row.get("metadata"):
        lines.append(f"metadata: {json.dumps(_plain(row['metadata']), ensure_ascii=False)}")
    return "\n".join(display.one_line(line, _CELL_WIDTH) for line in lines)


def _plain(value: Any) -> Any:
    """Numbers of a protobuf Struct are doubles: 3.0 was 3 in the row."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value
