"""Files on their way: what is sent, and what has arrived so far. Nothing here knows the mesh."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from services.mesh.errors import AlreadyExists, DataLoss, InvalidArgument

CHUNK_BYTES = 1024 * 1024
# Files that have not come whole, in the folder that they are for.
PARTIAL_FOLDER = ".rlhf-partial"


@dataclass(frozen=True)
class Progress:
    """How far a transfer is: bytes, or rows while they are checked. `total` is 0 where nobody knows."""

    phase: Literal["hashing", "sending", "checking", "downloading"]
    done: int
    total: int


# May be called from any thread.
OnProgress = Callable[[Progress], None]


def ignore(progress: Progress) -> None:
    """For a caller that does not want to know."""


class Source:
    """What is to be sent: a file, or bytes gathered in a temporary one, since an upload starts with size and hash."""

    def __init__(self, file: BinaryIO, file_name: str, size_bytes: int, sha256: str) -> None:
        self._file = file
        self.file_name, self.size_bytes, self.sha256 = file_name, size_bytes, sha256

    @classmethod
    def open(cls, content: Path | Iterable[bytes], file_name: str, on_progress: OnProgress) -> Source:
        """Raises InvalidArgument on a file that is not there or empty, and where bytes come without a file name."""
        if isinstance(content, Path):
            check_file(content)
            size = content.stat().st_size
            file = content.open("rb")
            return cls(file, file_name or content.name, size, _hashed(_chunks(file), size, on_progress))
        if not file_name:
            raise InvalidArgument.of("file_name", "must be given with bytes; its end says what they are: rows.jsonl")
        spool = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the source
        sha256 = _hashed(_copied(content, spool), 0, on_progress)
        size = spool.seek(0, os.SEEK_END)
        spool.flush()
        if not size:
            raise InvalidArgument.of("content", "is empty")
        return cls(spool, file_name, size, sha256)

    def read(self, offset: int) -> bytes:
        """At most CHUNK_BYTES at `offset`; several may read at once. Raises DataLoss where the file has shrunk."""
        chunk = os.pread(self._file.fileno(), min(CHUNK_BYTES, self.size_bytes - offset), offset)
        if not chunk:
            raise DataLoss("FILE_CHANGED", f"{self.file_name} has become shorter while it was sent", offset=offset)
        return chunk

    def close(self) -> None:
        self._file.close()


def check_file(path: Path) -> None:
    """Raises InvalidArgument where there is nothing to upload."""
    if not path.is_file():
        raise InvalidArgument.of("file_name", f"{path} is not a file")
    if not path.stat().st_size:
        raise InvalidArgument.of("file_name", f"{path} is empty")


def json_lines(rows: Iterable[Mapping[str, object]]) -> Iterator[bytes]:
    """Rows as lines of JSON, to be uploaded as `….jsonl`."""
    for row in rows:
        yield json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"


class Partial:
    """A file that is arriving. What an earlier try left of it is gone on with; a longer file is begun again."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size > size_bytes:
            path.unlink()
        self._path, self._size_bytes = path, size_bytes
        self._file = path.open("ab")
        self.offset = self._file.tell()

    def append(self, offset: int, chunk: bytes) -> None:
        """Raises DataLoss for bytes that do not follow those that are there."""
        if offset != self.offset or offset + len(chunk) > self._size_bytes:
            raise DataLoss("WRONG_OFFSET", f"asked for byte {self.offset}, got {len(chunk)} bytes at {offset}")
        self._file.write(chunk)
        self.offset += len(chunk)

    def position(self) -> int:
        """Of the byte that is wanted next."""
        return self.offset

    def finish(self, target: Path, sha256: str) -> None:
        """Give it its name. Raises DataLoss where size or hash (empty asks for none) is another: begin again."""
        self.close()
        if self.offset != self._size_bytes:
            raise DataLoss("WRONG_SIZE", f"{target.name} has {self.offset} bytes, not {self._size_bytes}: try again")
        if sha256 and (found := hash_file(self._path)) != sha256:
            self._path.unlink()
            raise DataLoss("WRONG_HASH", f"{target.name} came with SHA-256 {found}, not {sha256}: try again")
        target.parent.mkdir(parents=True, exist_ok=True)
        self._path.replace(target)

    def close(self) -> None:
        self._file.close()


def hash_file(path: Path) -> str:
    """Lower-case hex SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_room(target: Path, overwrite: bool) -> None:
    """Raises InvalidArgument for a folder, AlreadyExists for a file that may not be replaced."""
    if target.is_dir():
        raise InvalidArgument.of("to", f"{target} is a folder; name a file")
    if target.exists() and not overwrite:
        raise AlreadyExists("FILE_EXISTS", f"{target} is there already", path=target)


def place_in(folder: Path, path: str) -> Path:
    """Where the file `path` of an artifact belongs. Raises InvalidArgument where that is not under `folder`, be it by
    the path or by a link that lies there."""
    from services.mesh.artifacts import check_relative_path

    target = folder / check_relative_path(path)
    if not target.parent.resolve().is_relative_to(folder.resolve()):
        raise InvalidArgument.of("path", f"{target} is reached by a link that leads out of {folder}")
    return target


def is_there(target: Path, size_bytes: int, sha256: str, overwrite: bool) -> bool:
    """Whether the file lies there already, whole. Raises AlreadyExists for another one that may not be replaced."""
    if not target.exists():
        return False
    if target.is_file() and target.stat().st_size == size_bytes and hash_file(target) == sha256:
        return True
    if overwrite and target.is_file():
        return False
    raise AlreadyExists("FILE_EXISTS", f"{target} is another file", path=target)


def _hashed(chunks: Iterable[bytes], total: int, on_progress: OnProgress) -> str:
    digest, done = hashlib.sha256(), 0
    on_progress(Progress("hashing", 0, total))
    for chunk in chunks:
        digest.update(chunk)
        done += len(chunk)
        on_progress(Progress("hashing", done, total))
    return digest.hexdigest()


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(CHUNK_BYTES):
        yield chunk


def _copied(content: Iterable[bytes], spool: BinaryIO) -> Iterator[bytes]:
    for piece in content:
        spool.write(piece)
        yield piece


def remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not there, or another download is using it
        folder.rmdir()
