"""A run that reports at a given pace and trains nothing: the benches start it as the worker's Python.

It writes its spool as the runner does: for each step one record of metrics and one of progress. The environment's PACE
is a JSON object: `keys` a step, `steps_per_second` (0 is as fast as it can), and `start`, a file for which it waits, so
that many begin together. The value of key k at step s is s × keys + k, but for the very first, which is NaN.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from services.mesh.runs import spool
from services.trainer.training.launch_plan import read


def main(folder: Path) -> None:
    plan, pace = read(folder), json.loads(os.environ["PACE"])
    (folder / "runner.json").write_text(json.dumps({"pid": os.getpid()}))
    writer = spool.SpoolWriter(folder / "spool.jsonl")
    writer.append(spool.Phase(phase="training", total_steps=plan.total_steps))
    while not Path(pace["start"]).exists():
        time.sleep(0.01)
    keys = [f"bench/metric_{number:02}" for number in range(pace["keys"])]
    begin = time.monotonic()
    for step in range(1, plan.total_steps + 1):
        if pace["steps_per_second"]:
            time.sleep(max(0.0, begin + step / pace["steps_per_second"] - time.monotonic()))
        values = {key: float(step * len(keys) + number) for number, key in enumerate(keys)}
        if step == 1:
            values[keys[0]] = float("nan")
        writer.append(spool.Metrics(step=step, values=values))
        writer.append(spool.Phase(phase="training", step=step, total_steps=plan.total_steps))
    writer.append(spool.End(outcome="succeeded", step=plan.total_steps))


if __name__ == "__main__":
    main(Path(sys.argv[-1]))
