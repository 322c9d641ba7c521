"""What an uploaded file may cost. Files come from strangers: every one of these is met by some hostile file."""

from __future__ import annotations

from dataclasses import dataclass

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


@dataclass(frozen=True)
class Limits:
    """Bounds of one validation. Beyond a `row` limit a row becomes a finding; beyond any other the file is refused."""

    row_bytes: int = 16 * MIB
    """One line, one array element, one CSV record, one canonical row."""
    decompressed_bytes: int = 256 * GIB
    ratio: int = 500
    """Decompressed to compressed bytes. Chat text compresses 3 to 30 times; a bomb 1,000 times and more."""
    ratio_grace_bytes: int = 64 * MIB
    """The ratio is not looked at before this much has come out: small repetitive files are honest."""
    rows: int = 200_000_000
    """A Parquet file of some kilobytes can claim billions of rows."""
    columns: int = 1_000
    """Columns of a CSV file, leaf columns of a Parquet file."""
    column_depth: int = 16
    """Nesting of Parquet columns."""
    row_group_bytes: int = 4 * GIB
    """One Parquet row group, uncompressed, as the file's footer claims."""
    findings: int = 100
    """Findings kept with their text; all are counted."""
    findings_of_reason: int = 3
    """Of each reason: more of the same say nothing new, and hide what is wrong besides."""
