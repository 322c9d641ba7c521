"""A resumed run is one that never stopped, and says so where it is not: real training by verl on Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from services.mesh.runs.spool import End, Metrics, Record, Software
from services.trainer.runs.records import Checkpoint
from services.trainer.training import launch_plan as plans
from services.trainer.verl.verification.resume_check import SAMPLER_FILE
from tests.fix_runner import AttemptMaker

pytestmark = pytest.mark.slow
SFT = {"learning_rate": 2e-3, "batch_size": 16, "max_length": 32, "warmup_ratio": 0.0, "scheduler": "cosine"}
GRPO = {
    "learning_rate": 1e-3,
    "prompts_per_step": 16,
    "samples_per_prompt": 2,
    "max_prompt_length": 16,
    "max_response_length": 8,
    "reward": {"name": "regex", "params": {"pattern": "1", "mode": "search"}},
}
WATCHED = ("train/loss", "train/grad_norm", "train/learning_rate", "reward/mean", "actor/entropy")


def series(records: list[Record]) -> dict[int, dict[str, float]]:
    """What each step reported of what depends on everything that is restored."""
    found: dict[int, dict[str, float]] = {}
    for record in records:
        if isinstance(record, Metrics) and "train/loss" in record.values:
            found[record.step] = {name: record.values[name] for name in WATCHED if name in record.values}
    return found


def ready(records: list[Record]) -> dict[int, Checkpoint]:
    return {r.step: r for r in records if isinstance(r, Checkpoint) and r.state == "ready"}


def resume(attempts: AttemptMaker, name: str, algorithm: str, saved: Checkpoint, **params: Any) -> list[Record]:
    point = plans.ResumePoint(saved.step, saved.training_state_path)
    return attempts(name, algorithm, resume_from=point, **params).run()


# 64 rows are 4 steps: a stop in the middle of a pass, and one exactly at its end.
@pytest.mark.parametrize(
    ("algorithm", "params"),
    [
        ("sft", SFT),
        ("sft", {**SFT, "lora": {"rank": 4, "alpha": 8, "dropout": 0.2}}),
        ("grpo", GRPO),
    ],
    ids=["sft", "sft-lora-dropout", "grpo"],
)
def test_a_resumed_run_is_one_that_never_stopped(
    attempts: AttemptMaker, algorithm: str, params: dict[str, Any]
) -> None:
    whole = attempts("whole", algorithm, steps=6, save_every_steps=1, **params).run()
    assert isinstance(whole[-1], End) and whole[-1].outcome == "succeeded", whole[-1]
    assert series(whole)[1]["train/learning_rate"] == params["learning_rate"], "of the step itself"
    kept = ready(whole)
    for step in (2, 4):
        resumed = resume(attempts, f"from-{step}", algorithm, kept[step], steps=6, save_every_steps=2, **params)
        assert isinstance(resumed[-1], End) and resumed[-1].outcome == "succeeded", resumed[-1]
        after = {number: values for number, values in series(whole).items() if number > step}
        assert list(series(resumed)) == list(after)
        for number, values in series(resumed).items():
            assert values == pytest.approx(after[number], rel=1e-4, abs=1e-6), f"step {number} after {step}"
    for checkpoint in kept.values():
        difference = checkpoint.metrics["verification/logprob_difference"]
        assert 0 <= difference < 1e-4, "what was saved answers as what was in training"
        assert checkpoint.software["verl"]
    [software] = [record for record in whole if isinstance(record, Software)]
    assert {"rlhf-mesh", "torch", "verl", "python"} <= software.versions.keys()


def test_what_was_not_taken_up_fails_the_resume_and_is_named(attempts: AttemptMaker) -> None:
    whole = attempts("whole", "sft", steps=2, save_every_steps=1, **SFT).run()
    state = Path(ready(whole)[1].training_state_path)
    folder = state / "global_step_1"
    fingerprint, sampler = folder / "fingerprint_rank_0.json", folder / SAMPLER_FILE

    said = json.loads(fingerprint.read_text())
    fingerprint.write_text(json.dumps({**said, "optimizer": {**said["optimizer"], "updates": [7.0]}, "rng": {}}))
    end = resume(attempts, "other-optimizer", "sft", ready(whole)[1], steps=2, **SFT)[-1]
    assert isinstance(end, End) and (end.outcome, end.reason) == ("failed", "RESUME_FAILED"), end
    assert "optimizer" in end.message and "rng" in end.message and "scheduler" not in end.message

    fingerprint.write_text(json.dumps(said))
    sampler.write_text(json.dumps({**json.loads(sampler.read_text()), "batches": 3}))
    end = resume(attempts, "other-rows", "sft", ready(whole)[1], steps=2, **SFT)[-1]
    assert isinstance(end, End) and end.reason == "RESUME_FAILED" and "batches" in end.message, end
