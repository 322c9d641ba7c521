"""The demonstration's other path: a few steps of LoRA on SmolLM2-135M-Instruct, through the same calls.

The model knows sums of small numbers but answers in sentences; the examples have it answer with the number alone.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.cli import display, output
from services.cli.demo import measuring, steps
from services.cli.jobkit import reports, views
from services.cli.output import Column
from services.client import references

if TYPE_CHECKING:
    from rlhf.type.v1.sample_pb2 import Sample

    from services.client import AsyncClient

EXAMPLES, HELD_OUT = 96, 24
_STEPS, _SHORT_STEPS = 12, 2
_PARAMS = {
    "learning_rate": 1e-3,
    "scheduler": "constant",
    "warmup_ratio": 0.0,
    "batch_size": 8,
    "max_length": 96,
    "lora": {"rank": 16, "alpha": 32},
    "validation": {"rows": HELD_OUT, "max_new_tokens": 24, "batch_size": HELD_OUT},
    "reward": {"name": "exact"},
}


@dataclass(frozen=True)
class Files:
    examples: Path
    held_out: Path


def write(seed: int, folder: Path) -> Files:
    """Sums of two numbers from 2 to 40, no question in both files. The same seed gives the same bytes."""
    pairs = [(a, b) for a in range(2, 41) for b in range(2, 41)]
    random.Random(seed).shuffle(pairs)  # noqa: S311 - a demonstration, not a secret
    sums = [(f"What is {a} + {b}?", str(a + b)) for a, b in pairs[: EXAMPLES + HELD_OUT]]
    folder.mkdir(parents=True, exist_ok=True)
    files = Files(folder / "examples.jsonl", folder / "held_out.jsonl")
    _write(files.held_out, ({"prompt": [_turn("user", q)], "answer": a} for q, a in sums[:HELD_OUT]))
    _write(files.examples, ({"messages": [_turn("user", q), _turn("assistant", a)]} for q, a in sums[HELD_OUT:]))
    return files


async def run(client: AsyncClient, home: Path, seed: int, short: bool) -> bool:
    """Whether the loss fell; a run cut short is not asked for that."""
    run_id = references.new_id("smollm2")
    steps.title(f"SmolLM2-135M-Instruct learns to answer sums with the number alone (seed {seed})")
    files = await asyncio.to_thread(write, seed, home / "demo" / run_id)
    output.say(f"{EXAMPLES} examples, {HELD_OUT} held out: {files.examples.parent}")
    await steps.upload(client, f"{run_id}-examples", "messages", files.examples)
    await steps.upload(client, f"{run_id}-held-out", "prompt", files.held_out)
    await _import(client, home, run_id)
    params = {**_PARAMS, "seed": seed, "steps": _SHORT_STEPS if short else _STEPS}
    job = await steps.train_on(
        client, f"{run_id}-sft", "sft", run_id, f"{run_id}-examples", f"{run_id}-held-out", params
    )
    before = await measuring.samples(client, job.name, 0)
    after = await measuring.samples(client, job.name, job.steps)
    fell = await _show_loss(client, job.name)
    output.show()
    output.show(_answers(await asyncio.to_thread(measuring.questions, files.held_out), before, after))
    output.show()
    name = references.short(job.name)
    output.say(f"the adapter: {name}/step-{job.steps}")
    output.hint(f"rlhf checkpoint download {name} --to my-adapter     a PEFT folder")
    return fell or short


async def _import(client: AsyncClient, home: Path, name: str) -> None:
    from rlhf.trainer.v1.model_pb2 import ModelSource

    from services.cli.demo import smollm2

    with output.messages().status("fetching SmolLM2 and converting it (once, about a minute)"):
        folder = await asyncio.to_thread(smollm2.prepare, home / "models")
    await steps.make_model(client, name, ModelSource(path=str(folder)))


async def _show_loss(client: AsyncClient, job: str) -> bool:
    """Say the loss of the first and the last step; whether it fell."""
    points = views.effective(await reports.stored_points(client.training_jobs, job, ["train/loss"]))
    if not points:
        return False
    first, last = points[0].value, points[-1].value
    output.say(
        f"loss {display.number(first)} at step {points[0].step}, {display.number(last)} at step {points[-1].step}"
    )
    return last < first


def _answers(questions: list[str], before: list[Sample], after: list[Sample]) -> Any:
    rows = list(zip(before, after, strict=True))[:8]
    right = [sum(sample.score == 1 for sample in samples) for samples in (before, after)]
    columns = [
        Column("QUESTION", lambda row: questions[row[0].row_index]),
        Column(f"BEFORE ({right[0]}/{len(before)} RIGHT)", lambda row: display.one_line(row[0].completion, 60)),
        Column(f"AFTER ({right[1]}/{len(after)} RIGHT)", lambda row: display.one_line(row[1].completion, 40)),
        Column("ANSWER", lambda row: row[0].answer, right=True),
    ]
    return output.table(columns, rows)


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _write(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    with file.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)
