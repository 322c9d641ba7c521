"""What a person sees while the mesh starts and stops: a line for each process, read off the supervisor's state."""

from __future__ import annotations

import os
import subprocess
import time

from services.cli import output
from services.mesh.processes.procfs import ProcessId
from services.supervisor import state
from services.supervisor.embedded.home import Home
from services.supervisor.state import MeshState, Phase, ProcessState, Stage

_POLL_SECONDS = 0.05
# A supervisor writes its first state within this time of its start.
_PATIENCE_SECONDS = 30.0


def narrate_start(home: Home, process: subprocess.Popen[bytes] | None = None) -> MeshState | None:
    """Follow a start to its end: the last state, or None when there was none.

    `process` is the supervisor that we started; where another one holds the home already, that one is followed. None
    means that this process is the supervisor itself.
    """
    told: set[str] = set()
    begun = time.monotonic()
    with output.messages().status("starting") as spinner:
        while True:
            known = state.read(home.state)
            ours = known is not None and known.supervisor.pid == (process.pid if process else os.getpid())
            # Not ours but alive: somebody else was faster, and the supervisor we started has found the home locked.
            if known is not None and (ours or (known.alive() and (process is None or _ended(process)))):
                _tell(known, told)
                waiting = [each.name for each in known.processes if each.stage is not Stage.READY]
                spinner.update(f"waiting for {', '.join(waiting)}" if waiting else "starting")
                if known.phase in (Phase.READY, Phase.STOPPED, Phase.FAILED):
                    return known
            elif _ended(process) or time.monotonic() - begun > _PATIENCE_SECONDS:
                return None
            if ours and _ended(process):
                return state.read(home.state)
            time.sleep(_POLL_SECONDS)


def _ended(process: subprocess.Popen[bytes] | None) -> bool:
    return process is not None and process.poll() is not None


def _tell(known: MeshState, told: set[str]) -> None:
    for each in known.processes:
        if each.stage is Stage.READY and each.name not in told:
            told.add(each.name)
            output.say(f"  [✓] {each.name:<16} {_how(each):>10}   {each.address}")


def _how(process: ProcessState) -> str:
    return "goes on" if process.adopted else f"{process.ready_seconds:.1f} s"


def narrate_stop(home: Home, supervisor: ProcessId, seconds: float) -> bool:
    """Follow a stop until the supervisor is gone; False when that took longer than `seconds`."""
    told: set[str] = set()
    deadline = time.monotonic() + seconds
    with output.messages().status("stopping"):
        while True:
            alive = supervisor.alive()
            if (known := state.read(home.state)) is not None:
                for each in known.processes:
                    if each.stage is Stage.STOPPED and each.name not in told:
                        told.add(each.name)
                        output.say(f"  {each.name:<16} {each.message or 'stopped'}")
            if not alive or time.monotonic() > deadline:
                return not alive
            time.sleep(_POLL_SECONDS)
