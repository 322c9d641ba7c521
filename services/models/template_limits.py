"""Limits of what a stranger's chat template may take: jinja's sandbox bounds one range, not loops in each other."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import threading
from collections.abc import Iterator
from types import FrameType

# Of processor time, for a conversation; honest ones take milliseconds.
RENDER_SECONDS = 10.0
# Of what one conversation adds to the process.
PROBE_BYTES = 512 << 20
# What no template's signal handler reaches: one operation of the interpreter without end. The kernel ends the process.
_KILL_SECONDS = 120
# What tells how much memory this process has, by the process: opened before it confines itself, when it sees /proc.
_sizes: dict[int, int] = {}


class TooSlowError(Exception):
    """The template took its time; the text says how much."""


@contextlib.contextmanager
def timed(conversations: int) -> Iterator[None]:
    """A block that renders so many. Raises TooSlowError; where signals are not for this thread it is not limited."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    seconds = RENDER_SECONDS * max(conversations, 1)

    def stop(number: int, frame: FrameType | None) -> None:
        raise TooSlowError(f"not done after {seconds:g} s of processor time")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def foresee() -> None:
    """Have `probing` know how much memory this process has, also after it has confined itself."""
    if os.getpid() not in _sizes:
        with contextlib.suppress(OSError):
            _sizes[os.getpid()] = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)


@contextlib.contextmanager
def probing() -> Iterator[None]:
    """A block in which a template is rendered for the first time: MemoryError where it takes more than an honest one
    would; the kernel ends the process where it does not come back."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    limits = {resource.RLIMIT_CPU: int(used.ru_utime + used.ru_stime) + _KILL_SECONDS}
    foresee()
    if (size := _sizes.get(os.getpid())) is not None:
        pages = int(os.pread(size, 64, 0).split()[0])
        limits[resource.RLIMIT_AS] = pages * resource.getpagesize() + PROBE_BYTES
    before = {limit: resource.getrlimit(limit) for limit in limits}
    for limit, value in limits.items():
        soft, hard = before[limit]
        least = min(value, *(bound for bound in (soft, hard) if bound != resource.RLIM_INFINITY), value)
        resource.setrlimit(limit, (least, hard))
    try:
        yield
    finally:
        for limit, bounds in before.items():
            resource.setrlimit(limit, bounds)
