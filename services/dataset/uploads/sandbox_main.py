"""The process that parses an upload: see sandbox.py.

    python -m services.dataset.uploads.sandbox_main PARENT PATH FILE_NAME FORMAT MEMORY_BYTES CPU_SECONDS OPTIONS



Imports what parses only after the limits are set.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from services.dataset.reading.limits import Limits
from services.dataset.uploads.options import UploadOptions
from services.dataset.uploads.sandbox import HEADER, Outcome
from services.dataset.uploads.skipped_rows import told, words
from services.mesh.processes.confinement import confine_or_say

if TYPE_CHECKING:
    from services.dataset.uploads.validation import Progress, Report

_PR_SET_PDEATHSIG = 1
_PROGRESS_SECONDS = 0.2
# A finding quotes a stranger's words: keep the first of them.
_MAX_FIELD_CHARACTERS = 300
_MAX_MESSAGE_CHARACTERS = 1000

Send = Callable[[bytes, bytes | memoryview], None]


def limit(parent: int, memory_bytes: int, cpu_seconds: int) -> None:
    """Die with the worker `parent`, and by the kernel's hand when this process takes too much. Linux only."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before
        sys.exit("the worker is gone")
    for limit, value in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, Limits().decompressed_bytes),
    ):
        _lower(limit, value, value)
    # A second between the signal that ends it and the one that nothing outlives.
    _lower(resource.RLIMIT_CPU, cpu_seconds, cpu_seconds + 1)


def run(path: Path, file_name: str, format_name: str, options: UploadOptions, send: Send) -> None:
    """Read the file, sending frames as it goes."""
    from services.dataset.reading.findings import UnreadableFile
    from services.dataset.uploads.validation import validate

    try:
        report = validate(
            path,
            file_name,
            format_name,
            lambda content: send(b"C", content),
            options=options,
            held_out_sink=lambda content: send(b"H", content),
            skipped_sink=lambda row: send(b"S", row),
            on_progress=_now_and_then(send),
        )
        held_out = msgspec.to_builtins(report.held_out_statistics)
        outcome = Outcome("", "", _report(report), msgspec.to_builtins(report.statistics), held_out)
    except UnreadableFile as error:
        outcome = Outcome(error.reason, words(str(error), _MAX_MESSAGE_CHARACTERS))
    except MemoryError:
        outcome = Outcome("FILE_TOO_COMPLEX", "reading it takes more memory than a file may; split it or its rows")
    send(b"E", msgspec.json.encode(outcome))


def _now_and_then(send: Send) -> Callable[[Progress], None]:
    """Tells how many rows were read, at most every _PROGRESS_SECONDS: each frame wakes the worker."""
    told = time.monotonic()

    def tell(progress: Progress) -> None:
        nonlocal told
        if time.monotonic() - told >= _PROGRESS_SECONDS:
            told = time.monotonic()
            send(b"P", b"%d" % progress.rows)

    return tell


def _report(report: Report) -> dict[str, Any]:
    return {
        "row_count": report.rows,
        "invalid_row_count": report.invalid_rows,
        "findings": [told(finding) for finding in report.findings],
        "finding_count": report.finding_count,
        "finding_count_by_reason": {reason.upper(): count for reason, count in report.findings_by_reason.items()},
        "row_count_by_spelling": report.spellings,
        "row_count_by_metadata_key": _counts(report.kept_keys),
        "duplicate_row_count": report.duplicates,
        "duplicate_row_count_exact": report.duplicates_exact,
        "suggested_field_mapping": report.suggested_mapping,
        "split_row_count": report.held_out_rows,
    }


def _counts(counts: dict[str, int]) -> dict[str, int]:
    """By names that strangers gave, made fit to be stored; those that are then equal are added up."""
    total: Counter[str] = Counter()
    for name, count in counts.items():
        total[words(name, _MAX_FIELD_CHARACTERS)] += count
    return dict(total)


def _lower(limit: int, soft: int, hard: int) -> None:
    _, most = resource.getrlimit(limit)
    if most != resource.RLIM_INFINITY:
        soft, hard = min(soft, most), min(hard, most)
    resource.setrlimit(limit, (soft, hard))


def main(arguments: list[str]) -> None:
    parent, path, file_name, format_name, memory_bytes, cpu_seconds, options = arguments
    limit(int(parent), int(memory_bytes), int(cpu_seconds))
    confine_or_say([Path(path)], [Path.cwd()])
    # Whatever else prints goes to the log: standard output carries frames.
    descriptor = os.dup(1)
    os.dup2(2, 1)
    with os.fdopen(descriptor, "wb") as output:

        def send(kind: bytes, content: bytes | memoryview) -> None:
            output.write(HEADER.pack(kind, len(content)))
            output.write(content)
            output.flush()

        run(Path(path), file_name, format_name, msgspec.json.decode(options, type=UploadOptions), send)


if __name__ == "__main__":
    main(sys.argv[1:])
