"""The process of an echo job: says its text, a step each time."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from services.mesh.runs.files import PLAN_FILE, SPOOL_FILE
from services.mesh.runs.process import Control, identify
from services.mesh.runs.spool import End, Metrics, Phase, SpoolWriter

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    identify(folder)
    plan = json.loads((folder / PLAN_FILE).read_bytes())
    spool, control, step = SpoolWriter(folder / SPOOL_FILE), Control(folder), 0
    while step < plan["times"] and not control.stop_requested():
        step += 1
        print(plan["text"], flush=True)
        spool.append(Metrics(step=step, values={"echo/characters": float(step * len(plan["text"]))}))
        spool.append(Phase(phase="echoing", step=step, total_steps=plan["times"]))
        time.sleep(0.02)
    spool.append(End(outcome="succeeded" if step == plan["times"] else "stopped", step=step))
