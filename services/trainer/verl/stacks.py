"""What every thread of a process was doing, in the attempt's folder: for who looks why a run hung."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
from pathlib import Path

from services.mesh.runs.files import STACKS_FILE
from services.trainer.verl.environment import FOLDER


def in_process() -> None:
    """Write them whenever this process of a run gets a SIGUSR1, whatever it waits for: no Python runs for that."""
    folder = os.environ.get(FOLDER, "")
    if not folder:
        return
    # A machine that does not have the folder, or a disk that is full: then there are none.
    with contextlib.suppress(OSError):
        descriptor = os.open(Path(folder) / STACKS_FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        faulthandler.register(signal.SIGUSR1, descriptor, all_threads=True)


def write(folder: Path) -> None:
    """Write them now. What cannot be written is not missed: the run has failed already."""
    with contextlib.suppress(OSError), (folder / STACKS_FILE).open("a") as file:
        file.write(f"\npid {os.getpid()}:\n")
        file.flush()
        faulthandler.dump_traceback(file, all_threads=True)
