"""A run that two would end at once, who cancels it and who sees that an actor is lost, ends once: a real runner and its
spool, with another training in the place of verl's."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from services.mesh.runs.files import PLAN_FILE, SPOOL_FILE
from services.mesh.runs.spool import End, read_all
from services.trainer.training import launch_plan as plans
from tests.unit.trainer.test_plan import PLAN

ROOT = Path(__file__).parents[3]
# Whoever has come to its End waits a while for another with one, so that neither's exit hides the other's.
RUN = """
import contextlib, sys, threading
from pathlib import Path
from services.mesh.runs.spool import End
from services.mesh.runs.files import STACKS_FILE
from services.trainer.verl import runner
from services.mesh.runs.process import StopRequestedError
from services.trainer.verl.failures import ActorLostError

folder, first = Path(sys.argv[1]), sys.argv[2]
cancelled, both = threading.Event(), threading.Barrier(2)
append = runner.TracedSpool.append

def meet(spool, record):
    if isinstance(record, End):
        if threading.current_thread() is threading.main_thread():
            cancelled.set()
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(2)
    append(spool, record)

def train(context, control, variables, give_up):
    def watch():
        if first == "cancelled":
            cancelled.wait()
        give_up(ActorLostError("WorkerDict (pid 1) has gone"))

    threading.Thread(target=watch, daemon=True).start()
    if first == "lost":
        # The first thing that it does who ends the run for a loss.
        while not (folder / STACKS_FILE).exists():
            pass
    raise StopRequestedError

runner.TracedSpool.append, runner._train = meet, train
sys.exit(runner.main(folder))
"""


@pytest.mark.parametrize(
    ("first", "outcome", "reason"),
    [
        ("cancelled", "stopped", "STOP_REQUESTED"),
        ("lost", "failed", "WORKER_DIED"),
    ],
)
def test_a_run_that_is_cancelled_beside_a_lost_actor_ends_once(
    first: str, outcome: str, reason: str, tmp_path: Path
) -> None:
    (tmp_path / PLAN_FILE).write_bytes(plans.encode(replace(PLAN, work_dir=str(tmp_path))))
    command = [sys.executable, "-c", RUN, str(tmp_path), first]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    ends = [record for record in read_all(tmp_path / SPOOL_FILE) if isinstance(record, End)]
    assert [(end.outcome, end.reason) for end in ends] == [(outcome, reason)]
