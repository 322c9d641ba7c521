"""Reward models on verl's training workers, as the trainer worker starts them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from services.mesh.runs.spool import End, Metrics, SampleBatch
from services.trainer.runs.records import Checkpoint
from services.trainer.training import launch_plan as plans
from tests.fix_runner import AttemptMaker

pytestmark = pytest.mark.slow
PARAMS = {
    "learning_rate": 2e-3,
    "batch_size": 16,
    "micro_batch_size": 8,
    "max_length": 32,
    "scheduler": "constant",
    "warmup_ratio": 0.0,
}


def losses(records: list) -> dict[int, float]:
    assert isinstance(records[-1], End) and records[-1].outcome == "succeeded", records[-1]
    return {r.step: r.values["train/loss"] for r in records if isinstance(r, Metrics) and "train/loss" in r.values}


def ready(records: list) -> dict[int, Checkpoint]:
    return {r.step: r for r in records if isinstance(r, Checkpoint) and r.state == "ready"}


def scores(folder: Path, rows: list[dict]) -> list[list[float]]:
    """As a user would: transformers' classifier on the rendered conversation, one at a time, without padding."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)

    def score(messages: list[dict[str, str]]) -> float:
        tokens = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
        with torch.no_grad():
            return float(model(torch.tensor([tokens])).logits[:, 0])

    return [[score(row["prompt"] + row[side]) for side in ("chosen", "rejected")] for row in rows]


def test_which_answer_is_better_is_learnt_the_same_after_a_stop(attempts: AttemptMaker) -> None:
    whole = attempts("whole", "reward_model", steps=8, save_every_steps=3, centre_coefficient=0.01, **PARAMS)
    records = whole.run()
    found = losses(records)
    assert list(found) == list(range(1, 9)) and found[8] < 0.5 < found[1]
    last = next(r.values for r in records if isinstance(r, Metrics) and r.step == 8 and "rewards/accuracy" in r.values)
    assert last["rewards/accuracy"] == 1
    assert last["rewards/margin"] == pytest.approx(last["rewards/chosen"] - last["rewards/rejected"], abs=1e-4)

    checkpoints = ready(records)
    assert {step: one.kind for step, one in checkpoints.items()} == dict.fromkeys((3, 6, 8), "reward")
    # Held-out pairs, judged by the side process from the folder.
    metrics = checkpoints[8].metrics
    assert metrics["verification/score_difference"] < 1e-4
    assert metrics["validation/pairs/count"] == 16 and metrics["validation/accuracy"] == 1
    folder = Path(checkpoints[8].path)
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"] and config["dtype"] == "float32"
    assert not {path.suffix for path in folder.iterdir()} & {".bin", ".pt"}
    assert whole.plan.validation_path is not None
    rows = [json.loads(line) for line in Path(whole.plan.validation_path).read_text().splitlines()]
    ours = scores(folder, rows)
    margin = sum(chosen - rejected for chosen, rejected in ours) / len(ours)
    assert metrics["validation/margin"] == pytest.approx(margin, abs=1e-4)
    each = [math.log1p(math.exp(worse - better)) + 0.01 * (better + worse) ** 2 for better, worse in ours]
    assert metrics["validation/loss"] == pytest.approx(sum(each) / len(ours), abs=1e-4)
    shown = [s for r in records if isinstance(r, SampleBatch) and r.step == 8 for s in r.samples]
    assert [s.score for s in shown] == pytest.approx([score for pair in ours for score in pair], abs=1e-4)

    point = plans.ResumePoint(3, checkpoints[3].training_state_path)
    resumed = attempts("resumed", "reward_model", resume_from=point, steps=8, centre_coefficient=0.01, **PARAMS).run()
    assert losses(resumed) == pytest.approx({step: found[step] for step in range(4, 9)}, abs=1e-6)


def test_adapters_are_merged_and_two_slots_agree_on_the_new_layer(attempts: AttemptMaker) -> None:
    lora = {"rank": 4, "alpha": 8, "dropout": 0.0}
    records = attempts("adapter", "reward_model", slots=2, steps=6, lora=lora, **PARAMS).run()
    found = losses(records)
    assert found[6] < found[1]
    [checkpoint] = ready(records).values()
    assert checkpoint.kind == "reward" and checkpoint.metrics["validation/accuracy"] == 1
    # What was merged scores as what was in training.
    assert checkpoint.metrics["verification/score_difference"] < 1e-4
    assert "adapter_model.safetensors" not in {path.name for path in Path(checkpoint.path).iterdir()}
