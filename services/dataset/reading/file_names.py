"""What a file is by its name. Apart from what reads it, which imports pyarrow: the service starts without."""

from __future__ import annotations

from pathlib import Path

from services.dataset.reading.findings import UnreadableFile

SUFFIXES = {".gz": "gzip", ".zst": "zstd"}
CONTAINERS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


def by_name(file_name: str) -> tuple[str, str]:
    """(container, compression), e.g. ("jsonl", "gzip") for `chat.jsonl.gz`. Raises UnreadableFile for other names."""
    name = Path(file_name.lower())
    compression = SUFFIXES.get(name.suffix, "none")
    suffix = name.suffix if compression == "none" else Path(name.stem).suffix
    if suffix not in CONTAINERS:
        known = ", ".join(CONTAINERS)
        message = f"the name must end in one of {known}, optionally followed by {' or '.join(SUFFIXES)}"
        raise UnreadableFile("UNKNOWN_FILE_TYPE", message, file_name=file_name[:200])
    return CONTAINERS[suffix], compression
