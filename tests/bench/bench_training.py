"""Training through the platform beside bare verl: `python -m tests.bench.bench_training [options]`.

In turns, on a machine that does nothing else: a job of a whole mesh (`rlhf up`, upload, import, job; worker, database,
services and gateway run beside it, and one client follows its metrics), and the same plan carried out by
`tests/bench/bare_run.py` with the mesh down. Both take a step's time the same way: the clock when verl calls its
logger. A run's figure is the median of its steps without the first ones. Prints each pair, and the mean ratio of
platform to bare with its 95 % interval (Student's t on the logarithms). Asserts nothing about time.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import random
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from services.mesh.runs import spool
from services.mesh.runs.files import PLAN_FILE, SPOOL_FILE
from services.trainer.runs.records import read_from
from services.trainer.training import launch_plan as plans
from tests.fix_mesh import Mesh, embedded_mesh
from tests.fix_runner import CONFIG

# Steps that warm caches up.
WARM_UP = 5
# Of Student's t, two-sided 95 %, by degrees of freedom.
_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228, 14: 2.145}
PARAMS: dict[str, dict[str, Any]] = {
    "sft": {"batch_size": 32, "max_length": 32, "learning_rate": 1e-3},
    "grpo": {"prompts_per_step": 8, "samples_per_prompt": 8, "max_prompt_length": 16, "max_response_length": 8},
}


def rows(algorithm: str, path: Path) -> None:
    """Sort six digits, 256 times."""
    numbers = random.Random(0)
    lines: list[str] = []
    for _ in range(256):
        text = "".join(numbers.choices("0123456789", k=6))
        question, answer = {"role": "user", "content": text}, "".join(sorted(text))
        turns = [question, {"role": "assistant", "content": answer}]
        lines.append(
            json.dumps({"messages": turns} if algorithm == "sft" else {"prompt": [question], "answer": answer})
        )
    path.write_text("\n".join(lines) + "\n")


def answer(mesh: Mesh, *words: str) -> None:
    done = subprocess.run(
        mesh.command(*words), env=mesh.environment, capture_output=True, text=True, timeout=1800, check=False
    )
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"


def through_the_platform(root: Path, algorithm: str, steps: int) -> tuple[list[int], Path]:
    """When its steps were logged, and a folder with its plan and what the plan names."""
    data, config = root / "rows.jsonl", root / "config.json"
    rows(algorithm, data)
    config.write_text(json.dumps(CONFIG))
    bare = root / "bare"
    bare.mkdir()
    with embedded_mesh(root / "home", RLHF_TRAINER_SLOTS="1") as mesh:
        answer(mesh, "up")
        row_format = "messages" if algorithm == "sft" else "prompt"
        answer(mesh, "dataset", "upload", str(data), "--name", "rows", "--format", row_format)
        answer(mesh, "model", "import", "tiny", "--init", str(config), "--characters", "0123456789")
        values = PARAMS[algorithm] | {"steps": steps}
        settings = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
        answer(mesh, "train", algorithm, "--model", "tiny", "--dataset", "rows", "--watch", *settings)
        (attempt,) = (root / "home" / "trainer" / "jobs").glob("*/attempts/1")
        plan = plans.read(attempt)
        model = shutil.copytree(plan.model_path, bare / "model")
    records, _ = read_from(attempt / SPOOL_FILE, 0, 1 << 30)
    own = replace(plan, model_path=str(model), train_path=str(data), validation_path=None, work_dir=str(bare))
    (bare / PLAN_FILE).write_bytes(plans.encode(own))
    return [record.time_ns for record in records if isinstance(record, spool.Metrics)], bare


def bare(folder: Path) -> list[int]:
    with (folder / "output.log").open("wb") as log:
        token = folder / "ray_token"
        token.write_text(secrets.token_hex(32))
        ray = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        environment = {**os.environ, **ray, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "tests.bench.bare_run", str(folder)]
        done = subprocess.run(command, env=environment, stdout=log, stderr=log, timeout=1800, check=False)
    assert done.returncode == 0, (folder / "output.log").read_text()[-3000:]
    return json.loads((folder / "steps.json").read_text())


def step_seconds(times_ns: list[int], steps: int) -> float:
    assert len(times_ns) == steps, (len(times_ns), steps)
    between = [(after - before) / 1e9 for before, after in itertools.pairwise(times_ns)]
    return statistics.median(between[WARM_UP:])


def interval(ratios: list[float]) -> str:
    logs = [math.log(ratio) for ratio in ratios]
    mean = statistics.mean(logs)
    if len(logs) < 2:
        return f"{math.exp(mean):.4f} (one pair, no interval)"
    freedom = max(known for known in _T if known <= len(logs) - 1)
    half = _T[freedom] * statistics.stdev(logs) / math.sqrt(len(logs))
    return f"{math.exp(mean):.4f}, 95 % interval {math.exp(mean - half):.4f}–{math.exp(mean + half):.4f}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--sft-steps", type=int, default=200)
    parser.add_argument("--grpo-steps", type=int, default=60)
    parser.add_argument("--algorithm", choices=list(PARAMS), action="append")
    options = parser.parse_args()
    for algorithm in options.algorithm or list(PARAMS):
        steps = getattr(options, f"{algorithm}_steps")
        ratios: list[float] = []
        for number in range(options.pairs):
            with tempfile.TemporaryDirectory() as folder:
                times, plan = through_the_platform(Path(folder), algorithm, steps)
                platform, alone = step_seconds(times, steps), step_seconds(bare(plan), steps)
            ratios.append(platform / alone)
            figures = f"platform {platform * 1000:.1f} ms, bare {alone * 1000:.1f} ms a step, ratio {ratios[-1]:.4f}"
            print(f"{algorithm} pair {number + 1}: {figures}; load {os.getloadavg()[0]:.1f}", flush=True)
        print(f"{algorithm}: {len(ratios)} pairs of {steps} steps: mean ratio {interval(ratios)}", flush=True)


if __name__ == "__main__":
    main()
