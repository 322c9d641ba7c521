"""What /proc says about processes. Linux only."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")


@dataclass(frozen=True)
class ProcessId:
    """A process and not merely its number: `start_ticks` (clock ticks from boot to its start) tells a reused pid."""

    pid: int
    start_ticks: int

    def alive(self) -> bool:
        return identify(self.pid) == self


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/<pid>/stat from the third on: state, ppid, pgrp, session, …; None when there is none."""
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    # The second field, the command in parentheses, may hold spaces and parentheses itself.
    return text.rpartition(")")[2].split()


def identify(pid: int) -> ProcessId | None:
    """The process with this number, or None when there is none or only its zombie."""
    fields = _stat(pid)
    if fields is None or fields[0] in ("Z", "X"):
        return None
    return ProcessId(pid, int(fields[19]))


def is_stopped(pid: int) -> bool:
    """Whether it is stopped by a signal (SIGSTOP, SIGTSTP), and so does nothing until it is told to go on."""
    fields = _stat(pid)
    return fields is not None and fields[0] == "T"


def pids() -> Iterator[int]:
    for entry in os.scandir(_PROC):
        if entry.name.isdecimal():
            yield int(entry.name)


def users() -> Iterator[int]:
    """Of the processes that run now."""
    for pid in pids():
        with contextlib.suppress(OSError):
            yield (_PROC / str(pid)).stat().st_uid


def in_folder(folder: Path) -> list[int]:
    """The processes whose working directory is `folder`."""
    found = []
    for pid in pids():
        try:
            if (_PROC / str(pid) / "cwd").readlink() == folder and identify(pid) is not None:
                found.append(pid)
        except OSError:  # gone, or another user's
            continue
    return found


def with_variable(name: str, value: str) -> list[ProcessId]:
    """The processes that were started with this environment variable."""
    wanted = f"{name}={value}".encode()
    found = []
    for pid in pids():
        try:
            variables = (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if wanted in variables and (process := identify(pid)) is not None:
            found.append(process)
    return found


def tree(root: int) -> list[int]:
    """`root` and all its descendants."""
    children: dict[int, list[int]] = {}
    for pid in pids():
        if (fields := _stat(pid)) is not None:
            children.setdefault(int(fields[1]), []).append(pid)
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def session_members(session: int) -> list[int]:
    """The processes of a session, zombies excluded."""
    found = []
    for pid in pids():
        fields = _stat(pid)
        if fields is not None and int(fields[3]) == session and fields[0] not in ("Z", "X"):
            found.append(pid)
    return found


def kill(processes: Iterable[int], number: int = signal.SIGKILL) -> None:
    """Send a signal to each; those that are gone are passed over."""
    for pid in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def memory_bytes(processes: list[int]) -> int:
    """Memory of these processes together; pages that several share are divided among them (PSS).

    Falls back to the resident size where the kernel does not let us read smaps.
    """
    return sum(_memory(pid) for pid in processes)


def _memory(pid: int) -> int:
    for file, key in (("smaps_rollup", "Pss:"), ("status", "VmRSS:")):
        try:
            lines = (_PROC / str(pid) / file).read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            if line.startswith(key):
                return int(line.split()[1]) * 1024
    return 0
