"""What a run is told, by its file or by a signal, and what it leaves behind for the worker."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from services.mesh.runs.process import Control
from services.mesh.runs.runners import Entrypoint
from services.mesh.runs.runners.local import LocalRun


def test_a_signal_stops_the_run_and_stays_known_after_it(tmp_path: Path) -> None:
    control, run = Control(tmp_path), LocalRun(tmp_path, Entrypoint("python", "none", {}))
    before = signal.getsignal(signal.SIGTERM)
    try:
        control.catch_termination()
        assert not control.stop_requested() and not run.was_told_to_stop()
        os.kill(os.getpid(), signal.SIGTERM)
        assert control.stop_requested() and run.was_told_to_stop()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_worker_stops_the_run_by_its_file(tmp_path: Path) -> None:
    control, run = Control(tmp_path), LocalRun(tmp_path, Entrypoint("python", "none", {}))
    run.request_stop()
    assert control.stop_requested() and run.was_told_to_stop()
