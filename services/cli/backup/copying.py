"""Copies of files: hashed on the way, under another name until they are whole, closed to others."""

from __future__ import annotations

import hashlib
import os
import stat
import uuid
from dataclasses import dataclass
from pathlib import Path

from services.mesh.errors import NO_ROOM, DataLoss, ResourceExhausted

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Copied:
    size_bytes: int
    sha256: str


def copy(source: Path, target: Path, size_bytes: int, sha256: str = "") -> Copied:
    """At most `size_bytes` of `source`, which may still grow.

    Raises DataLoss where there are fewer of them, or others, than a named `sha256` says; ResourceExhausted when the
    disk is full.
    """
    make_folders(target.parent)
    temporary = target.with_name(f".{uuid.uuid4().hex}")
    try:
        copied = _copy(source, temporary, size_bytes)
        if sha256 and copied != Copied(size_bytes, sha256):
            raise DataLoss("WRONG_HASH", f"{source} is damaged: its bytes are not those that were saved", path=source)
        temporary.replace(target)
    except OSError as error:
        if error.errno in NO_ROOM:
            message = f"there is no room left for {target}; free some, or choose another disk"
            raise ResourceExhausted("DISK_FULL", message) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)
    return copied


def make_folders(folder: Path) -> None:
    """`mkdir` gives only the last of several the mode that it is asked for."""
    if not folder.is_dir():
        make_folders(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


def _copy(source: Path, target: Path, size_bytes: int) -> Copied:
    digest, left = hashlib.sha256(), size_bytes
    # Not waiting for the other end of a pipe that somebody has put there.
    reading = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(reading, "rb") as file:
        if not stat.S_ISREG(os.fstat(reading).st_mode):
            raise DataLoss("NOT_A_FILE", f"{source} is not a file", path=source)
        writing = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(writing, "wb") as out:
            while left and (chunk := file.read(min(_CHUNK_BYTES, left))):
                digest.update(chunk)
                out.write(chunk)
                left -= len(chunk)
    return Copied(size_bytes - left, digest.hexdigest())
