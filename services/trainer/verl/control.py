"""What the worker wants of a run, read at step boundaries."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path
from typing import Any

import msgspec

from services.trainer.runs.runners import local
from services.trainer.training.launch_plan import CONTROL_FILE


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
                local.write_atomically(self._path, local.STOP)

        signal.signal(signal.SIGTERM, terminate)


class StopRequestedError(Exception):
    """Raised where a run is told to stop before its first step."""
