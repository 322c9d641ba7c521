"""Step time and memory by size of the model and number of workers, on CPU: `python -m tests.bench.bench_scaling`.

Each run is a launch plan of the algorithm itself, carried out by the real runner in a Ray of its own, in fp32 with one
torch thread a worker: SFT of 16 rows a step and GRPO of 4 prompts × 4 answers a step, the rows and lengths of
bench_trl.py. Step times are medians without the first steps. Memory is the proportional share (PSS, summed over
processes, so that shared pages count once) of the runner and of what runs for the job in Ray, at its highest after the
first steps; Ray itself and the server that forks them are left out. Prints; asserts that the runs take their steps.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from services.mesh.runs.spool import Metrics
from tests.bench.bench_trl import MAX_LENGTH, MAX_NEW, MAX_PROMPT, rows
from tests.bench.models import make_model
from tests.fix_runner import Attempt, AttemptMaker, PrivateRay, start_ray, write_rows

WARMING_STEPS = 2
PARAMS: dict[str, dict[str, Any]] = {
    "sft": {"batch_size": 16, "max_length": MAX_LENGTH},
    "grpo": {
        "prompts_per_step": 4,
        "samples_per_prompt": 4,
        "max_prompt_length": MAX_PROMPT,
        "max_response_length": MAX_NEW,
        "reward": {"name": "regex", "params": {"pattern": "1", "mode": "search"}},
    },
}


def pss_bytes(pids: list[int]) -> int:
    """Of those that still live."""
    found = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        found += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024
    return found


def steps_of(attempt: Attempt) -> list[float]:
    metrics = [record for record in attempt.records() if isinstance(record, Metrics)]
    return [record.values["time/step_seconds"] for record in metrics if "time/step_seconds" in record.values]


def measure(maker: AttemptMaker, ray: PrivateRay, algorithm: str, slots: int, steps: int) -> tuple[float, int]:
    """Seconds a step, and bytes."""
    made = maker(f"{algorithm}-{slots}", algorithm, slots=slots, steps=1_000_000, **PARAMS[algorithm])
    write_rows(Path(made.plan.train_path), rows(algorithm))
    attempt = maker.of(made.folder, made.plan, validation=None, validation_path=None)
    process = attempt.start()
    highest = 0
    try:
        while len(taken := steps_of(attempt)) < WARMING_STEPS + steps:
            assert process.poll() is None, (attempt.folder / "output.log").read_text()[-4000:]
            if len(taken) >= WARMING_STEPS:
                highest = max(highest, pss_bytes([process.pid, *ray.job_processes()]))
            time.sleep(0.5)
        return statistics.median(taken[WARMING_STEPS:]), highest
    finally:
        process.kill()
        process.wait()
        while ray.job_processes():
            time.sleep(0.5)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", default=["1m", "10m", "135m"])
    parser.add_argument("--algorithm", choices=list(PARAMS), action="append")
    parser.add_argument("--steps", type=int, default=6)
    options = parser.parse_args()
    for model in options.models:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            path = make_model(model, root)
            ray = start_ray(cpus=2, gpus=2, store_bytes=2_000_000_000)
            try:
                for algorithm in options.algorithm or list(PARAMS):
                    for slots in (1, 2):
                        maker = AttemptMaker(root, path, ray.address, fork_server=ray.fork_server)
                        seconds, memory = measure(maker, ray, algorithm, slots, options.steps)
                        figures = f"{seconds * 1000:9.0f} ms a step, {memory / 2**30:.2f} GiB"
                        load = os.getloadavg()[0]
                        print(f"{model:5} {algorithm:5} {slots} workers {figures}; load {load:.1f}", flush=True)
            finally:
                ray.stop()


if __name__ == "__main__":
    main()
