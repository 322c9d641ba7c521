#!/usr/bin/env python
"""A run that follows a script instead of training: for tests of the worker that follows runs.

It is started as the worker's Python, writes a real spool, output and files, and needs neither Ray nor verl. The
environment's SCRIPT is a JSON object: see `main` for its words.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from services.mesh.artifacts import Manifest
from services.mesh.processes import procfs
from services.mesh.runs import processes, spool
from services.mesh.runs.runners import local
from services.mesh.runs.spans import TracedSpool
from services.trainer.runs import records
from services.trainer.training.launch_plan import read
from services.trainer.verl import stacks
from services.trainer.verl.environment import FOLDER


def main(folder: Path) -> None:
    plan = read(folder)
    os.environ[FOLDER] = str(folder)
    (folder / "runner.json").write_text(json.dumps({"pid": os.getpid()}))
    writer = TracedSpool(folder / "spool.jsonl")
    writer.begin(
        plan.traceparent,
        plan.span_attributes,
    )
    script = json.loads(os.environ["SCRIPT"])
    if script.get("starts_another"):
        other = procfs.identify(subprocess.Popen(["sleep", "3600"], start_new_session=True).pid)
        assert other is not None
        processes.write(folder, [processes.RunProcess("sleep", other)])
    writer.append(spool.Phase(phase="starting"))
    if plan.start_step < plan.total_steps:
        writer.append(spool.Phase(phase="training", step=plan.start_step, total_steps=plan.total_steps))
    for step in range(plan.start_step + 1, plan.total_steps + 1):
        time.sleep(script.get("step_seconds", 0))
        while step == script.get("hold_at") and not Path(script["hold_until"]).exists():
            time.sleep(0.02)
        if step == script.get("hang_at") and plan.attempt <= script.get("hang_attempts", 1):
            # With the stacks of a run, which has no part in what a scripted one does besides.
            stacks.in_process()
            time.sleep(3600)
        if step == script.get("die_untold_at") and plan.attempt == 1:
            # As one whose actor goes between a step's checkpoint and its metrics.
            save(folder, writer, step, spoil=False)
            os.kill(os.getpid(), signal.SIGKILL)
        print(f"step {step} of attempt {plan.attempt}", flush=True)
        values = {"train/loss": 1.0 / step, "train/grad_norm": float("nan")}
        writer.append(spool.Metrics(step=step, values=values))
        writer.append(spool.Phase(phase="training", step=step, total_steps=plan.total_steps))
        if step in script.get("warn_at", []):
            said = f"at {step}\0"
            writer.append(
                spool.Problem(severity="warning", reason="GRADIENT_ZERO", message=said, remedy="r", step=step)
            )
        if step in script.get("save_at", []):
            save(folder, writer, step, spoil=step in script.get("spoil_at", []))
        if step in script.get("stopped_and_killed_at", []):
            # As `Control` leaves it behind a SIGTERM, of a process that is killed while it saves.
            (folder / "control.json").write_bytes(local.STOP)
            os.kill(os.getpid(), signal.SIGKILL)
        if step == script.get("die_at") and plan.attempt <= script.get("die_attempts", 1):
            os.kill(os.getpid(), signal.SIGKILL)
        stop = json.loads((folder / "control.json").read_text())["action"] == "stop"
        told = step == script.get("told_to_stop_at") and plan.attempt == 1
        if told or (stop and not script.get("deaf")):
            writer.append(spool.End(outcome="stopped", step=step))
            return
        if step == script.get("fail_at") and plan.attempt <= script.get("fail_attempts", 99):
            reason = script.get("fail_reason", "OUT_OF_MEMORY")
            end = spool.End(outcome="failed", step=step, reason=reason, message="no room", remedy="smaller batch")
            writer.append(end)
            return
    writer.append(spool.End(outcome="succeeded", step=plan.total_steps))


def save(folder: Path, writer: spool.SpoolWriter, step: int, *, spoil: bool) -> None:
    weights = folder / "checkpoints" / f"step-{step}" / "weights"
    state = weights.with_name("training_state")
    texts = {
        weights / "model.safetensors": f"weights {step}",
        weights / "config.json": "{}",
        state / "state.pt": f"state {step}",
    }
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    # Real ones, for what is loaded afterwards.
    if copied := json.loads(os.environ["SCRIPT"]).get("weights"):
        shutil.rmtree(weights)
        shutil.copytree(copied, weights)
    manifest = Manifest.of_folder(weights)
    kind = json.loads(os.environ["SCRIPT"]).get("kind", "full")
    common = {"step": step, "kind": kind, "path": str(weights), "training_state_path": str(state)}
    writer.append(records.Checkpoint(**common, state="verifying"))
    if read(folder).attempt >= json.loads(os.environ["SCRIPT"]).get("unverified_from_attempt", 99):
        return
    if step in json.loads(os.environ["SCRIPT"]).get("unconfirmed_at", []):
        writer.append(records.Checkpoint(**common, state="corrupt", reason=f"ValueError: other answers at {step}\0"))
        return
    if spoil:
        (weights / "model.safetensors").write_text("something else")
    facts = {"manifest_sha256": manifest.sha256, "size_bytes": manifest.size_bytes, "software": {"verl": "0.9.1"}}
    score = json.loads(os.environ["SCRIPT"]).get("scores", {}).get(str(step), step / 10)
    # Of conversations, by which jobs of `sft` choose, there is a loss.
    metrics = {"validation/score/mean": score, "validation/loss": 1 - score}
    writer.append(records.Checkpoint(**common, **facts, state="ready", metrics=metrics))
    answer = spool.Sample(row_index=0, prompt="q", completion="a\0", expected=None, score=0.5, parts={"correct": 0.5})
    writer.append(spool.SampleBatch(step=step, split="validation", samples=[answer]))


if __name__ == "__main__":
    main(Path(sys.argv[-1]))
