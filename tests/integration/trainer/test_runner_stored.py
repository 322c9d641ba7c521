"""Training over weights as hubs store them: in 16 bits, of which every number is one of fp32."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from services.mesh.runs.spool import End, Metrics, Record
from services.trainer.runs.records import Checkpoint
from tests.fix_runner import AttemptMaker
from tests.fix_stored import store_as
from tests.integration.trainer.test_runner_resume import GRPO, SFT

pytestmark = pytest.mark.slow
LORA = {"lora": {"rank": 4, "alpha": 8}, "save_every_steps": 1}


def steps(records: list[Record]) -> dict[int, dict[str, float]]:
    """What each step reported; every checkpoint must be READY, and each step must have learnt something."""
    assert isinstance(records[-1], End) and records[-1].outcome == "succeeded", records[-1]
    found = {r.step: r.values for r in records if isinstance(r, Metrics) and "train/loss" in r.values}
    assert all(values["train/grad_norm"] > 0 for values in found.values())
    states = {r.step: r for r in records if isinstance(r, Checkpoint)}
    assert {step: one.state for step, one in states.items()} == dict.fromkeys(found, "ready")
    assert all(one.metrics["verification/logprob_difference"] < 1e-4 for one in states.values())
    assert len({(weights(one.path)).read_bytes() for one in states.values()}) == len(found)
    return found


def weights(folder: str) -> Path:
    return next(Path(folder).glob("*model.safetensors"))


@pytest.mark.parametrize(
    ("algorithm", "params"),
    [("sft", {**SFT, **LORA}), pytest.param("sft", {**SFT, "save_every_steps": 1}, marks=pytest.mark.long)],
    ids=["lora", "full"],
)
def test_what_a_base_is_stored_in_makes_no_difference(
    attempts: AttemptMaker, tmp_path: Path, algorithm: str, params: dict[str, Any]
) -> None:
    """Of the same numbers. And the same seed begins the same adapter."""
    short = store_as(attempts.model, tmp_path / "bf16", torch.bfloat16)
    long = store_as(attempts.model, tmp_path / "fp32", torch.float32, values=torch.bfloat16)
    found = steps(replace(attempts, model=short)("short", algorithm, steps=5, **params).run())
    expected = steps(replace(attempts, model=long)("long", algorithm, steps=5, **params).run())
    for step, values in expected.items():
        for name in ("train/loss", "train/grad_norm"):
            assert found[step][name] == pytest.approx(values[name], rel=1e-5), (step, name)


def test_answers_are_sampled_from_the_adapter_that_is_trained(attempts: AttemptMaker, tmp_path: Path) -> None:
    """Not from one that is rounded to bf16 with the weights under it; nor does the reference of the KL disturb it."""
    base = store_as(attempts.model, tmp_path / "fp16", torch.float16)
    attempt = replace(attempts, model=base)("rl", "grpo", steps=5, kl_coefficient=0.05, **LORA, **GRPO)
    records = attempts.of(attempt.folder, attempt.plan, base_name="people/their-model").run()
    found = steps(records)
    assert found[5]["actor/kl"] > found[1]["actor/kl"] == 0
    assert max(values["rollout/probability_difference/max"] for values in found.values()) < 1e-6
    last = Path([record.path for record in records if isinstance(record, Checkpoint)][-1])
    config = json.loads((last / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "people/their-model"
