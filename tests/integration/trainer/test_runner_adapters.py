"""Adapters that verl has trained, merged, and trained on from there: all weights, and an adapter over the adapter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from services.mesh.artifacts import Manifest
from services.mesh.runs.spool import End, SampleBatch
from services.models.merge import merge
from services.trainer.runs.records import Checkpoint
from services.trainer.training import launch_plan as plans
from tests.fix_runner import AttemptMaker
from tests.integration.trainer.test_merge import logits
from tests.integration.trainer.test_runner_sft import PARAMS, losses

pytestmark = pytest.mark.slow
# A rate at which an adapter over random weights moves at all.
LORA = {**PARAMS, "learning_rate": 2e-2, "lora": {"rank": 4, "alpha": 8}}


def saved(records: list) -> dict[int, Checkpoint]:
    assert isinstance(records[-1], End) and records[-1].outcome == "succeeded", records[-1]
    return {record.step: record for record in records if isinstance(record, Checkpoint) and record.state == "ready"}


def test_training_goes_on_from_an_adapter(attempts: AttemptMaker, tmp_path: Path) -> None:
    base = attempts.model
    taught = attempts("taught", "sft", steps=8, **LORA).run()
    first = Path(saved(taught)[8].path)
    merged = tmp_path / "merged"
    merge(base, Manifest.of_folder(base).sha256, [first], merged)
    assert (logits(base, first) - logits(base)).abs().max() > 0.01, "it has learnt something"
    torch.testing.assert_close(logits(merged), logits(base, first), atol=1e-5, rtol=1e-4)

    # Steps 9 and on of the same rows begin where the adapter stood, not where its base does.
    onward = replace(attempts, model=merged)
    full = onward("full", "sft", steps=2, **PARAMS).run()
    assert saved(full)[2].kind == "full"
    assert losses(full)[1] == pytest.approx(losses(taught)[8], abs=0.1) and losses(full)[1] < losses(taught)[1] - 0.2
    assert {record.step for record in full if isinstance(record, SampleBatch)} == {0, 2}

    again = onward("again", "sft", steps=4, save_every_steps=2, **LORA).run()
    point = plans.ResumePoint(2, saved(again)[2].training_state_path)
    resumed = onward("resumed", "sft", resume_from=point, steps=4, **LORA).run()
    assert losses(resumed) == pytest.approx({step: loss for step, loss in losses(again).items() if step > 2}, rel=1e-4)
    second = Path(saved(again)[4].path)
    assert saved(again)[4].kind == "adapter"
    # What was verified against the weights in training is the adapter over the merged weights.
    assert saved(again)[4].metrics["verification/logprob_difference"] < 1e-3
    whole = tmp_path / "whole"
    merge(base, Manifest.of_folder(base).sha256, [first, second], whole)
    torch.testing.assert_close(logits(whole), logits(merged, second), atol=1e-5, rtol=1e-4)
