"""Trainings on one GPU: `python -m tests.bench.bench_gpu [names] [--steps N] [--model tiny|135m]`. Prints; asserts only
that each run succeeds.

Each run is a launch plan of the algorithm itself, carried out by the real runner in a Ray of its own, on a model made
from scratch: `135m` has the shape of SmolLM2-135M (30 layers of 576, 49,152 tokens). Its weights are random, which
changes no time and no memory. Step times are medians without the first two steps, memory is torch's peak in a training
worker. Wants CUDA; vLLM and flash-attn are used where the settings name them and they are installed.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from services.mesh.runs.spool import End, Metrics, Phase, Record
from tests.bench.models import MODELS, make_model
from tests.fix_runner import AttemptMaker, start_ray, write_rows

WARMING_STEPS = 2
ROWS, QUESTION, ANSWER = 512, 64, 448


class Run(NamedTuple):
    algorithm: str
    params: dict[str, Any]


_PAIRS = {"batch_size": 32, "micro_batch_size": 8, "max_length": 1024}
_POLICY = {
    "rollout_engine": "transformers",
    "prompts_per_step": 32,
    "samples_per_prompt": 8,
    "micro_batch_size": 32,
    "max_prompt_length": 128,
    "max_response_length": 128,
}
RUNS = {
    "sft": Run("sft", {"batch_size": 64, "micro_batch_size": 16, "max_length": 1024}),
    "sft-fp32": Run("sft", {"batch_size": 64, "micro_batch_size": 16, "max_length": 1024, "precision": "fp32"}),
    "sft-lora": Run("sft", {"batch_size": 64, "micro_batch_size": 16, "max_length": 1024, "lora": {"rank": 16}}),
    "dpo": Run("dpo", _PAIRS),
    "dpo-lora": Run("dpo", {**_PAIRS, "lora": {"rank": 16}}),
    "grpo": Run("grpo", _POLICY),
    "gspo": Run("gspo", _POLICY),
    "ppo": Run("ppo", {**_POLICY, "prompts_per_step": 256, "samples_per_prompt": 1}),
    "reward_model": Run("reward_model", _PAIRS),
}


def rows(algorithm: str) -> list[dict[str, Any]]:
    """Rows of the algorithm's format: a question of digits, and answers that say them in order and in reverse."""
    numbers = random.Random(0)
    made: list[dict[str, Any]] = []
    for _ in range(ROWS):
        text = "".join(numbers.choices("0123456789", k=QUESTION))
        question = [{"role": "user", "content": text}]
        right, wrong = (
            [{"role": "assistant", "content": "".join(sorted(text * 7, reverse=reverse))[:ANSWER]}]
            for reverse in (False, True)
        )
        if algorithm == "sft":
            made.append({"messages": question + right})
        elif algorithm in ("dpo", "reward_model"):
            made.append({"prompt": question, "chosen": right, "rejected": wrong})
        else:
            made.append({"prompt": question, "answer": "1"})
    return made


def measure(maker: AttemptMaker, name: str, steps: int, limit_seconds: float) -> None:
    algorithm, params = RUNS[name]
    reward = {"reward": {"name": "regex", "params": {"pattern": "1", "mode": "search"}}}
    extra: dict[str, Any] = reward if "rollout_engine" in params else {}
    # Held-out rows are answered on the CPU meanwhile, which is not what is measured.
    extra["validation"] = {"rows": 1} if algorithm == "reward_model" else {"rows": 1, "max_new_tokens": 1}
    attempt = maker(name, algorithm, steps=steps, **params, **extra)
    write_rows(Path(attempt.plan.train_path), rows(algorithm))
    started, started_ns = time.monotonic(), time.time_ns()
    process = attempt.start()
    try:
        status = process.wait(limit_seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        status = process.wait()
    took = time.monotonic() - started
    records = attempt.records()
    end = records[-1] if records else None
    if status or not isinstance(end, End) or end.outcome != "succeeded":
        taken = [r.step for r in records if isinstance(r, Metrics)]
        print(f"{name}: FAILED after {took:.0f} s and step {max(taken, default=0)}: {end}", flush=True)
        print((attempt.folder / "output.log").read_text()[-6000:], flush=True)
        return
    begun = next(r.time_ns for r in records if isinstance(r, Phase) and r.phase == "training")
    show(name, records, took, (begun - started_ns) / 1e9)


def show(name: str, records: list[Record], took: float, start: float) -> None:
    taken = [r.values for r in records if isinstance(r, Metrics) and "time/step_seconds" in r.values]
    seen = {key for values in taken for key in values}

    def middle(key: str) -> float:
        return statistics.median(values[key] for values in taken[WARMING_STEPS:] if key in values)

    seconds = middle("time/step_seconds")
    tokens = middle("train/tokens") if "train/tokens" in seen else float("nan")
    memory = [key for key in seen if "max_memory_allocated" in key]
    peak = max((values[key] for values in taken for key in memory if key in values), default=float("nan"))
    print(
        f"{name:9} step {seconds:7.3f} s  {tokens / seconds:10,.0f} tokens/s  peak {peak:6.2f} GB"
        f"  loss {taken[0].get('train/loss', float('nan')):.4f} → {taken[-1].get('train/loss', float('nan')):.4f}"
        f"  starts in {start:.0f} s, whole run {took:.0f} s",
        flush=True,
    )
    phases = sorted(key for key in seen if key.startswith("time/") and key != "time/step_seconds")
    others = sorted(key for key in seen if key.startswith(("reward", "rollout", "critic", "actor")))
    for key in phases + others:
        print(f"    {key} {middle(key):.4g}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=list(RUNS), help=", ".join(RUNS))
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--limit", type=float, default=600, help="seconds after which a run is ended as failed")
    parser.add_argument("--model", choices=list(MODELS), default="135m")
    arguments = parser.parse_args()
    print(f"{torch.cuda.get_device_name(0)}, torch {torch.__version__}, model {arguments.model}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        model = make_model(arguments.model, root)
        gpus = torch.cuda.device_count()
        ray = start_ray(cpus=os.cpu_count() or 4, gpus=gpus, store_bytes=8_000_000_000, forks=False)
        try:
            maker = AttemptMaker(root, model, ray.address, device="cuda")
            for name in arguments.names:
                measure(maker, name, arguments.steps, arguments.limit)
        finally:
            ray.stop()


if __name__ == "__main__":
    main()
