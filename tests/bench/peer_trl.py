"""One training by TRL, for bench_trl.py: `python -m tests.bench.peer_trl FOLDER`.

FOLDER holds `settings.json` (see `Settings`) and `train.jsonl` in our format. Each step appends a line to
`steps.jsonl`.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec


@dataclass(frozen=True)
class Settings:
    """What TRL is told; `batch_size` in rows, pairs or prompts a step, `samples` answers a prompt, `passes` a step."""

    algorithm: str
    model_path: str
    batch_size: int
    max_length: int
    learning_rate: float
    samples: int = 1
    max_new_tokens: int = 0
    passes: int = 1


@dataclass(frozen=True)
class Step:
    """`tokens` is counted from the start of the run."""

    time_ns: int
    step: int
    loss: float
    tokens: float


def has_a_one(completions: list[list[dict[str, str]]], **_: object) -> list[float | None]:
    return [float("1" in turns[0]["content"]) for turns in completions]


def common(settings: Settings, folder: Path) -> dict[str, Any]:
    """Everything that costs time and that we do not do is off: gradient checkpointing, saving, reporting elsewhere."""
    return {
        "output_dir": str(folder / "trl"),
        "per_device_train_batch_size": settings.batch_size * settings.samples // settings.passes,
        "gradient_accumulation_steps": settings.passes,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 1.0,
        "weight_decay": 0.01,
        "max_steps": 1_000_000,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "seed": 42,
    }


def make_trainer(settings: Settings, folder: Path, callback: Any) -> Any:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    model = AutoModelForCausalLM.from_pretrained(settings.model_path, dtype="float32", attn_implementation="sdpa")
    tokenizer = AutoTokenizer.from_pretrained(settings.model_path)
    shared = common(settings, folder)
    made: dict[str, Any] = {"model": model, "processing_class": tokenizer, "callbacks": [callback]}
    if settings.algorithm == "sft":
        # As prompt and completion, so that the answer alone is trained, as with us.
        pairs = [{"prompt": row["messages"][:-1], "completion": row["messages"][-1:]} for row in rows]
        args = SFTConfig(**shared, max_length=settings.max_length, packing=False)
        return SFTTrainer(args=args, train_dataset=Dataset.from_list(pairs), **made)
    if settings.algorithm == "dpo":
        # We compute the reference once, too.
        args = DPOConfig(**shared, max_length=settings.max_length, precompute_ref_log_probs=True, beta=0.1)
        return DPOTrainer(args=args, train_dataset=Dataset.from_list(rows), **made)
    args = GRPOConfig(
        **shared,
        num_generations=settings.samples,
        max_completion_length=settings.max_new_tokens,
        temperature=1.0,
        beta=0.0,
        num_iterations=1,
        epsilon=0.2,
        loss_type="dapo",
    )
    return GRPOTrainer(args=args, train_dataset=Dataset.from_list(rows), reward_funcs=has_a_one, **made)


def main(folder: Path) -> None:
    import torch
    from transformers import TrainerCallback

    torch.set_num_threads(1)
    settings = msgspec.json.decode((folder / "settings.json").read_bytes(), type=Settings)

    with (folder / "steps.jsonl").open("ab", buffering=0) as out:

        class Note(TrainerCallback):
            def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: object) -> None:
                if logs and "loss" in logs:
                    step = Step(time.time_ns(), state.global_step, logs["loss"], logs.get("num_tokens", float("nan")))
                    out.write(msgspec.json.encode(step) + b"\n")

        make_trainer(settings, folder, Note()).train()


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
