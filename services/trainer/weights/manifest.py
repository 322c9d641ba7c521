"""What a folder holds, file by file, so that a single flipped bit is found."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import msgspec


@dataclass(frozen=True)
class FileEntry:
    """`path` is relative to the folder, with forward slashes."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    files: tuple[FileEntry, ...]

    @property
    def sha256(self) -> str:
        """The hash of the manifest's own canonical JSON: the name of the content."""
        return hashlib.sha256(msgspec.json.encode({"files": list(self.files)})).hexdigest()

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


def of_folder(folder: Path) -> Manifest:
    """Every file below `folder`, by path. Raises OSError when one can't be read."""
    paths = sorted(
        (path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.relative_to(folder).as_posix()
    )
    return Manifest(tuple(_entry(folder, path) for path in paths))


def _entry(folder: Path, path: Path) -> FileEntry:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileEntry(path.relative_to(folder).as_posix(), os.fstat(file.fileno()).st_size, digest)
