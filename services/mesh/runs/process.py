"""The side of the process of a run: who it is, and what the worker wants of it."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Any

import msgspec

from services.mesh.runs.files import CONTROL_FILE, RUNNER_FILE, STOP, write_atomically


def identify(folder: Path) -> None:
    """Write who runs here: pids are reused, so the process's start time (clock ticks since boot) stands beside it."""
    # The 22nd field of stat; the 2nd, the command's name, may hold blanks and ends with the last ")".
    stat = Path("/proc/self/stat").read_text("ascii", "replace").rpartition(")")[2].split()
    identity = {"pid": os.getpid(), "start_ticks": int(stat[19])}
    partial = folder / f"{RUNNER_FILE}.partial"
    partial.write_bytes(msgspec.json.encode(identity))
    partial.replace(folder / RUNNER_FILE)


class Control:
    """`control.json` in the attempt's folder, replaced atomically by the worker; a SIGTERM means the same as stop."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / CONTROL_FILE
        self._terminated = False

    def stop_requested(self) -> bool:
        if self._terminated:
            return True
        try:
            wanted: Any = msgspec.json.decode(self._path.read_bytes())
        except (OSError, msgspec.DecodeError):
            # Nobody has asked for anything.
            return False
        return isinstance(wanted, dict) and wanted.get("action") == "stop"

    def catch_termination(self) -> None:
        """Call after ray.init, which installs a handler of its own."""

        def terminate(_signal: int, _frame: object) -> None:
            self._terminated = True
            # Should the process not live to say how it ended, the worker finds here that it was no death of its own.
            with contextlib.suppress(OSError):
                write_atomically(self._path, STOP)

        signal.signal(signal.SIGTERM, terminate)


class StopRequestedError(Exception):
    """Raised where a run is told to stop before its first step."""
