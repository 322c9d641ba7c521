"""The process in which mathematical answers are parsed and compared: `python -m services.scoring.math_process`.

Some expressions (9^{9^{9^9}}) keep the interpreter inside one C call for ever, where no Python exception or signal
handler reaches it. So a supervisor that has imported math-verify once forks a worker, and the kernel kills the worker
when a comparison has used its CPU time; the next worker is a fork away (10 ms, against 1.4 s for a new process). CPU
time and not the clock: a busy machine must not change a reward.

Lines in, JSON: {"number", "candidate", "reference", "cpu_seconds"}.
Lines out: `ready`; `start NUMBER`; `done NUMBER CORRECT PARSED`; `cut` when a worker was killed.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys
from typing import Any

_MEMORY_BYTES = 2 << 30


def main() -> None:
    """Serve until standard input ends."""
    replies = os.dup(1)
    os.dup2(2, 1)  # libraries print; the pipe is for replies alone
    logging.disable(logging.CRITICAL)
    compare(r"$\frac{1}{2}$", "0.5")  # imports, and builds the grammar's tables before the fork
    os.write(replies, b"ready\n")
    while True:
        worker = os.fork()
        if worker == 0:
            _serve(replies)
            os._exit(0)
        _, status = os.waitpid(worker, 0)
        if os.WIFEXITED(status):
            sys.exit(os.WEXITSTATUS(status))
        os.write(replies, b"cut\n")


def compare(candidate: str, reference: str) -> tuple[bool, bool]:
    """Whether the two are mathematically equal, and whether something was parsed in `candidate`. May never return."""
    from math_verify import parse, verify

    # math-verify's own limits rest on SIGALRM handlers, which C code outlasts; None leaves the limit to the kernel.
    options: dict[str, Any] = {"parsing_timeout": None, "fallback_mode": "no_fallback"}
    said = parse(candidate, **options)
    expected = parse(reference, **options)
    return bool(said and expected and verify(expected, said, timeout_seconds=None)), bool(said)


def _serve(replies: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # the default action ends the process
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    while line := _read_line():
        request = json.loads(line)
        os.write(replies, b"start %d\n" % request["number"])
        signal.setitimer(signal.ITIMER_PROF, request["cpu_seconds"])
        correct, parsed = _compare_safely(request["candidate"], request["reference"])
        signal.setitimer(signal.ITIMER_PROF, 0)
        os.write(replies, b"done %d %d %d\n" % (request["number"], correct, parsed))


def _compare_safely(candidate: str, reference: str) -> tuple[bool, bool]:
    try:
        return compare(candidate, reference)
    except Exception:  # whatever a parser makes of arbitrary text, it is not the answer
        return False, False


def _read_line() -> bytes:
    """One line, unbuffered, so that a killed worker takes no part of the next request with it; empty at the end."""
    parts: list[bytes] = []
    while not parts or not parts[-1].endswith(b"\n"):
        part = os.read(0, 1 << 16)
        if not part:
            return b""
        parts.append(part)
    return b"".join(parts)


if __name__ == "__main__":
    main()
