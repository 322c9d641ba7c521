"""A stranger's file is parsed in a process of its own, under limits on memory and CPU time: whatever it does to the
parser, the worker lives on and says what happened.

The process gets the file, a scratch folder and nothing else: no environment, no secrets, no connection. It answers over
its standard output in frames: one byte of kind, the length in 8 bytes big-endian, the content.

    C  a chunk of canonical rows
    H  a chunk of rows that a split holds out
    S  a row that is left out, as JSON
    P  rows read so far, decimal
    E  the end: an Outcome as JSON
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import struct
import sys
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import msgspec

from services.dataset.uploads.options import UploadOptions

log = logging.getLogger(__name__)

HEADER = struct.Struct(">cQ")
# A chunk is some 4 MiB, or one row of at most 16 MiB; more than this is a parser gone astray.
MAX_FRAME_BYTES = 64 * 1024 * 1024
_PIPE_BYTES = 1024 * 1024
_STDERR_BYTES = 4000
# pyarrow's default pools reserve address space far beyond what they use, which the limit would count. One thread each:
# several workers share the machine. `spawn` of our own: nothing of the worker's environment goes along.
_ENVIRONMENT = {"ARROW_DEFAULT_MEMORY_POOL": "system", "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}


class Outcome(msgspec.Struct, frozen=True):
    """What reading a file came to: an error of the whole file, or a report of its rows."""

    error_reason: str = ""
    error_message: str = ""
    # The fields of rlhf.dataset.v1.ValidationReport.
    report: dict[str, Any] = {}
    statistics: dict[str, Any] = {}
    # Of the rows that a split holds out.
    held_out_statistics: dict[str, Any] | None = None


@dataclass(frozen=True)
class HeldOut:
    """A chunk of rows that a split holds out."""

    content: bytes


@dataclass(frozen=True)
class Skipped:
    """A row that is left out, a SkippedRow as JSON."""

    content: bytes


Frame: TypeAlias = bytes | HeldOut | Skipped | int | Outcome


@dataclass(frozen=True)
class Reading:
    """What to read, and what that may take."""

    path: Path
    file_name: str
    format: str
    options: UploadOptions
    # Made before and removed afterwards.
    scratch: Path
    memory_bytes: int
    cpu_seconds: int

    def command(self) -> list[str]:
        options = msgspec.json.encode(self.options).decode()
        words = (os.getpid(), self.path, self.file_name, self.format, self.memory_bytes, self.cpu_seconds, options)
        return [sys.executable, "-P", "-m", "services.dataset.uploads.sandbox_main", *map(str, words)]


class ReaderDied(Exception):
    """The process ended without saying how reading ended. `final`: it would end so again."""

    def __init__(self, message: str, *, final: bool) -> None:
        super().__init__(message)
        self.final = final


async def read(reading: Reading) -> AsyncGenerator[Frame, None]:
    """Chunks as bytes, counts of rows, and last of all an Outcome; between them what is held out or left out. Raises
    ReaderDied.

    Close the iterator to end the process.
    """
    reading_end, writing_end = _pipe()
    with os.fdopen(reading_end, "rb") as frames:
        try:
            process = await asyncio.create_subprocess_exec(
                *reading.command(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=writing_end,
                stderr=asyncio.subprocess.PIPE,
                cwd=reading.scratch,
                env={**_ENVIRONMENT, "TMPDIR": str(reading.scratch), "PYTHONPATH": ":".join(filter(None, sys.path))},
            )
        finally:
            os.close(writing_end)
        assert process.stderr is not None
        tail = asyncio.create_task(_tail(process.stderr))
        try:
            while (frame := await asyncio.to_thread(_frame, frames)) is not None:
                yield frame
                if isinstance(frame, Outcome):
                    return
            status = await process.wait()
            log.error("reader died", extra={"status": status, "stderr": await tail})
            raise _died(status, reading)
        finally:
            # A thread that still waits for a frame sees the pipe's end then.
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            tail.cancel()


def _pipe() -> tuple[int, int]:
    """A pipe that takes much at a time, where the system lets it: every pause of the reader costs."""
    ends = os.pipe()
    with contextlib.suppress(OSError):
        fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    return ends


def _frame(frames: BinaryIO) -> Frame | None:
    """The next frame; None when there is no whole one any more."""
    header = frames.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    kind, size = HEADER.unpack(header)
    if size > MAX_FRAME_BYTES:
        raise ReaderDied(f"the reader sent a frame of {size} bytes", final=True)
    content = frames.read(size)
    if len(content) < size:
        return None
    if kind == b"C":
        return content
    if kind in _KINDS:
        return _KINDS[kind](content)
    if kind == b"P":
        return int(content)
    return msgspec.json.decode(content, type=Outcome)


_KINDS: dict[bytes, type[HeldOut] | type[Skipped]] = {b"H": HeldOut, b"S": Skipped}


async def _tail(stream: asyncio.StreamReader) -> str:
    """The last that the process wrote on its standard error."""
    kept = b""
    while piece := await stream.read(_STDERR_BYTES):
        kept = (kept + piece)[-_STDERR_BYTES:]
    return kept.decode(errors="replace")


def _died(status: int, reading: Reading) -> ReaderDied:
    if status == -signal.SIGXCPU:
        return ReaderDied(f"reading it takes more than {reading.cpu_seconds} s of CPU time", final=True)
    ending = f"exit status {status}" if status >= 0 else signal.Signals(-status).name
    return ReaderDied(f"the process that read it died ({ending})", final=False)
