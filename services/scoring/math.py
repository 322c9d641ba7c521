"""Mathematical equality of two answers (math-verify), in a process of its own with limits on CPU time and memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

# Of each side, the end is kept: that is where an answer stands, and grammars are slow on long texts.
LONGEST_TEXT = 8_192

_ROOT = Path(__file__).parents[2]
_DELIMITERS = ("$", "\\boxed", "\\fbox", "\\(", "\\[")


@dataclass(frozen=True)
class Verdict:
    """`parsed`: an expression was found in the candidate. `cut`: the comparison ran into its limit of CPU time."""

    correct: bool
    parsed: bool
    cut: bool = False


def delimited(answer: str) -> str:
    """`answer` as LaTeX that math-verify recognises; without delimiters it would read x^2+1 as nothing and 2x as 2."""
    return answer if any(mark in answer for mark in _DELIMITERS) else f"\\boxed{{{answer}}}"


def verify(candidate: str, reference: str, cpu_seconds: float) -> Verdict:
    """Compare one pair. Any thread may call; calls take turns. Raises RuntimeError where no process can be started."""
    return _process.verify(candidate[-LONGEST_TEXT:], reference[-LONGEST_TEXT:], cpu_seconds)


class _MathProcess:
    """The process that compares, started at the first call and again after it has died. One per process that asks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._number = 0

    def verify(self, candidate: str, reference: str, cpu_seconds: float) -> Verdict:
        with self._lock:
            process = self._running()
            self._number += 1
            request = {
                "number": self._number,
                "candidate": candidate,
                "reference": reference,
                "cpu_seconds": cpu_seconds,
            }
            verdict = self._ask(process, json.dumps(request).encode() + b"\n")
            if verdict is None:  # it has died, not only its worker
                self._stop(process)
            return verdict or Verdict(correct=False, parsed=False, cut=True)

    def _ask(self, process: subprocess.Popen[bytes], line: bytes) -> Verdict | None:
        """The verdict on the current request, None at the end of the pipe.

        A `cut` before the request's `start` tells of a worker that was killed while it waited, perhaps with the
        request already in its hands: asked again, and the reply to a second copy is known by its old number.
        """
        assert process.stdin is not None and process.stdout is not None
        started = False
        try:
            process.stdin.write(line)
            process.stdin.flush()
            for reply in process.stdout:
                kind, *fields = reply.split()
                if kind == b"cut":
                    if started:
                        return Verdict(correct=False, parsed=False, cut=True)
                    process.stdin.write(line)
                    process.stdin.flush()
                elif int(fields[0]) == self._number:
                    if kind == b"done":
                        return Verdict(correct=fields[1] == b"1", parsed=fields[2] == b"1")
                    started = True
        except BrokenPipeError:
            pass
        return None

    def _stop(self, process: subprocess.Popen[bytes]) -> None:
        process.kill()
        process.communicate()
        self._process = None

    def _running(self) -> subprocess.Popen[bytes]:
        """The process, fit to be asked; one that a parent started before a fork is left to that parent."""
        if self._process is None or self._owner != os.getpid():
            self._process, self._owner = _start(), os.getpid()
        return self._process


def _start() -> subprocess.Popen[bytes]:
    # Nothing of the environment goes along: the process reads a model's text and needs no secret.
    environment = {"PYTHONPATH": os.pathsep.join([str(_ROOT), *(path for path in sys.path if path)])}
    process = subprocess.Popen(
        [sys.executable, "-m", "services.scoring.math_process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for the caller; this process ends with its standard input
        env=environment,
    )
    assert process.stdout is not None
    if process.stdout.readline() != b"ready\n":
        raise RuntimeError(f"services.scoring.math_process did not start (exit code {process.wait()})")
    return process


_process = _MathProcess()
