"""SFT, DPO and GRPO beside TRL on CPU: `python -m tests.bench.bench_trl sft [--model 10m] [--pairs 6] [--seconds 6]`.

Both train the same model from scratch on the same rows with the same batch, lengths, learning rate and optimizer, in
fp32, one torch thread a process: ours by the runner as the trainer worker starts it, TRL's by its own trainer
(peer_trl.py; TRL and transformers are those of the environment, so torch is the same). Both are started once; then one
of them is stopped by a signal while the other trains, in turns, so that each pair of rates was taken within seconds.
Steps that a stop has cut are left out, as are the start and the first steps; what the start took is printed apart.
Validation and checkpoints are off for both. The learning rate is so small that the policy stays the one that both begin
with: GRPO's answers are then equally long on both sides. How many rows a forward pass takes is left to each (ours: what
the algorithm chooses; TRL: all of a step in one, or `--passes`, accumulating gradients).

Prints each pair, the mean ratio of rates (ours to TRL's, by tokens a second) with its 95 % interval, CPU seconds a step
(ours with those of all of Ray), and our phases. Asserts nothing about time.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from services.mesh.runs.spool import Metrics
from tests.bench.bench_training import interval
from tests.bench.models import MODELS, make_model
from tests.bench.peer_trl import Settings, Step
from tests.bench.processes import cpu_seconds
from tests.fix_runner import ENVIRONMENT, Attempt, AttemptMaker, PrivateRay, Runner, start_ray, write_rows

WARMING_STEPS = 3
LEAST_STEPS = 3
ROWS = 2048
# Digits of a question; a row has twice as many tokens and three.
SHORTEST, LONGEST = 6, 30
MAX_LENGTH, MAX_PROMPT, MAX_NEW = 64, 32, 32
RATE = 1e-6
# Rows, pairs or prompts a step, and answers a prompt, by algorithm; of the large model fewer.
SIZES: dict[str, tuple[int, int]] = {"sft": (32, 1), "dpo": (16, 1), "grpo": (8, 8)}
LARGE_SIZES: dict[str, tuple[int, int]] = {"sft": (8, 1), "dpo": (4, 1), "grpo": (4, 4)}


class Block(NamedTuple):
    """What a side did in one turn: whole steps, the seconds and tokens of them, and CPU seconds of the turn a step."""

    steps: int
    seconds: float
    tokens: float
    cpu: float

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


@dataclass
class Side:
    """A training that is stopped and goes on by signals. `noted` gives its steps: their time and their tokens."""

    name: str
    process: subprocess.Popen[bytes] | Runner
    started: float
    noted: Callable[[], list[tuple[int, float]]]
    log: Path
    # Others that compute for it.
    helpers: tuple[int, ...] = ()
    blocks: list[Block] = field(default_factory=list)

    def warm_up(self) -> float:
        """Wait for the first steps, and stop; seconds from the start to the first step's end."""
        self._await(WARMING_STEPS, 0)
        self.process.send_signal(signal.SIGSTOP)
        return self.noted()[0][0] / 1e9 - self.started

    def train(self, seconds: float) -> Block:
        begin, cpu = time.time_ns(), self._cpu()
        self.process.send_signal(signal.SIGCONT)
        time.sleep(seconds)
        self._await(LEAST_STEPS + 1, begin)
        self.process.send_signal(signal.SIGSTOP)
        within = [note for note in self.noted() if note[0] >= begin]
        whole = within[1:]
        block = Block(
            steps=len(whole),
            seconds=(within[-1][0] - within[0][0]) / 1e9,
            tokens=sum(tokens for _, tokens in whole),
            cpu=(self._cpu() - cpu) / len(within),
        )
        self.blocks.append(block)
        return block

    def end(self) -> None:
        self.process.kill()
        self.process.wait()

    def _cpu(self) -> float:
        return cpu_seconds(self.process.pid, *self.helpers)

    def _await(self, steps: int, since: int) -> None:
        deadline = time.monotonic() + 400
        while len([note for note in self.noted() if note[0] >= since]) < steps:
            alive = self.process.poll() is None
            assert alive and time.monotonic() < deadline, f"{self.name}: {self.log.read_text()[-4000:]}"
            time.sleep(0.05)


def row(text: str, algorithm: str) -> dict[str, Any]:
    question = {"role": "user", "content": text}
    right, wrong = ({"role": "assistant", "content": "".join(sorted(text, reverse=r))} for r in (False, True))
    if algorithm == "sft":
        return {"messages": [question, right]}
    if algorithm == "dpo":
        return {"prompt": [question], "chosen": [right], "rejected": [wrong]}
    return {"prompt": [question]}


def rows(algorithm: str) -> list[dict[str, Any]]:
    numbers = random.Random(0)
    lengths = (numbers.randint(SHORTEST, LONGEST) for _ in range(ROWS))
    return [row("".join(numbers.choices("0123456789", k=length)), algorithm) for length in lengths]


def settings(algorithm: str, model: str, model_path: Path, passes: int = 1) -> Settings:
    batch, samples = (LARGE_SIZES if model == "135m" else SIZES)[algorithm]
    return Settings(algorithm, str(model_path), batch, MAX_LENGTH, RATE, samples, MAX_NEW, passes)


def our_params(asked: Settings) -> dict[str, Any]:
    shared = {"learning_rate": asked.learning_rate, "scheduler": "constant", "warmup_ratio": 0.0, "steps": 1_000_000}
    if asked.algorithm != "grpo":
        return {**shared, "batch_size": asked.batch_size, "max_length": asked.max_length}
    return {
        **shared,
        "prompts_per_step": asked.batch_size,
        "samples_per_prompt": asked.samples,
        "max_prompt_length": MAX_PROMPT,
        "max_response_length": asked.max_new_tokens,
        "reward": {"name": "regex", "params": {"pattern": "1", "mode": "search"}},
    }


def metrics(attempt: Attempt) -> list[Metrics]:
    return [r for r in attempt.records() if isinstance(r, Metrics) and "train/loss" in r.values]


def start_ours(root: Path, asked: Settings, ray: PrivateRay) -> tuple[Side, Attempt]:
    maker = AttemptMaker(root, Path(asked.model_path), ray.address)
    made = maker("ours", asked.algorithm, **our_params(asked))
    write_rows(Path(made.plan.train_path), rows(asked.algorithm))
    attempt = maker.of(made.folder, made.plan, validation=None, validation_path=None)

    def noted() -> list[tuple[int, float]]:
        return [(record.time_ns, record.values["train/tokens"]) for record in metrics(attempt)]

    started = time.time()
    side = Side("ours", attempt.start(), started, noted, attempt.folder / "output.log", (ray.process.pid,))
    return side, attempt


def start_trl(root: Path, asked: Settings) -> Side:
    folder = root / "trl"
    folder.mkdir()
    write_rows(folder / "train.jsonl", rows(asked.algorithm))
    (folder / "settings.json").write_bytes(msgspec.json.encode(asked))
    steps = folder / "steps.jsonl"

    def noted() -> list[tuple[int, float]]:
        lines = steps.read_bytes().splitlines() if steps.exists() else []
        found = [msgspec.json.decode(line, type=Step) for line in lines]
        before = [0.0, *(step.tokens for step in found)]
        return [(step.time_ns, step.tokens - earlier) for step, earlier in zip(found, before, strict=False)]

    started = time.time()
    with (folder / "output.log").open("wb") as log:
        command = [sys.executable, "-m", "tests.bench.peer_trl", str(folder)]
        environment = {**ENVIRONMENT, "HF_HUB_OFFLINE": "1"}
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    return Side("TRL", process, started, noted, folder / "output.log")


def compare(ours: Side, theirs: Side, pairs: int, seconds: float) -> None:
    ratios: list[float] = []
    for number in range(pairs):
        order = [ours, theirs] if number % 2 == 0 else [theirs, ours]
        taken = {side.name: side.train(seconds) for side in order}
        ratios.append(taken["ours"].rate / taken["TRL"].rate)
        print(f"  pair {number + 1}: ratio {ratios[-1]:.3f}; load {os.getloadavg()[0]:.1f}", flush=True)
    for side in (ours, theirs):
        step = statistics.median(block.seconds / block.steps for block in side.blocks)
        rate = statistics.median(block.rate for block in side.blocks)
        cpu = statistics.median(block.cpu for block in side.blocks)
        steps = sum(block.steps for block in side.blocks)
        print(
            f"  {side.name:4} step {step * 1000:8.1f} ms {rate:8,.0f} tokens/s, {cpu:.3f} CPU s a step; {steps} steps"
        )
    print(f"  tokens/s, ours to TRL's: {interval(ratios)}", flush=True)


def show_phases(attempt: Attempt) -> None:
    """Medians over all steps but the first: a step in which the run was stopped does not move them."""
    taken = [record.values for record in metrics(attempt)[WARMING_STEPS:]]
    for name in sorted({name for values in taken for name in values if name.startswith(("time/", "verl/timing_s"))}):
        milliseconds = statistics.median(values[name] for values in taken if name in values) * 1000
        print(f"    {name} {milliseconds:.1f} ms")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("algorithm", choices=list(SIZES))
    parser.add_argument("--model", choices=list(MODELS), default="0.4m")
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--passes", type=int, default=1, help="forward passes a step of TRL's")
    parser.add_argument("--seconds", type=float, default=6, help="of one turn of one side")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        asked = settings(options.algorithm, options.model, make_model(options.model, root), options.passes)
        ray = start_ray(cpus=2, gpus=1)
        sides: list[Side] = []
        try:
            ours, attempt = start_ours(root, asked, ray)
            sides.append(ours)
            our_start = ours.warm_up()
            theirs = start_trl(root, asked)
            sides.append(theirs)
            starts = f"ours {our_start:.1f} s, TRL {theirs.warm_up():.1f} s"
            print(f"{options.algorithm} {options.model}; start to first step: {starts}", flush=True)
            compare(ours, theirs, options.pairs, options.seconds)
            show_phases(attempt)
        finally:
            for side in sides:
                side.end()
            ray.stop()


if __name__ == "__main__":
    main()
