"""DPO on verl's engine, as the trainer worker starts it."""
# ruff: noqa: N803, N806  (axes stand in names)

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from services.mesh.runs.spool import End, Metrics, Phase
from services.trainer.runs.records import Checkpoint
from services.trainer.training import launch_plan as plans
from tests.fix_runner import AttemptMaker, trained_rows_as_held_out
from tests.fix_stored import store_as

pytestmark = pytest.mark.slow
# 64 pairs are four batches, each of two micro batches.
PARAMS = {
    "learning_rate": 2e-3,
    "batch_size": 16,
    "micro_batch_size": 8,
    "max_length": 32,
    "scheduler": "constant",
    "warmup_ratio": 0.0,
}
SERIES = ("train/loss", "train/grad_norm", "train/tokens", "rewards/chosen", "rewards/rejected", "rewards/margin",
          "rewards/accuracy", "logps/chosen", "logps/rejected")  # fmt: skip


def series(records: list) -> dict[int, dict[str, float]]:
    """What is told of each step, without times."""
    assert isinstance(records[-1], End) and records[-1].outcome == "succeeded", records[-1]
    found = [r for r in records if isinstance(r, Metrics) and "train/loss" in r.values]
    assert len(found) == len({r.step for r in found}), "a step was reported twice"
    return {r.step: {name: r.values[name] for name in SERIES} for r in found}


def ready(records: list) -> dict[int, Checkpoint]:
    return {r.step: r for r in records if isinstance(r, Checkpoint) and r.state == "ready"}


def test_what_is_preferred_is_learnt_the_same_after_a_stop_and_on_two_slots(attempts: AttemptMaker) -> None:
    records = attempts("whole", "dpo", steps=8, save_every_steps=3, **PARAMS).run()
    steps = series(records)
    assert list(steps) == list(range(1, 9))
    # The policy begins as its reference.
    assert steps[1]["train/loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert steps[1]["rewards/margin"] == pytest.approx(0, abs=1e-5)
    assert steps[8]["train/loss"] < 0.5 and steps[8]["rewards/accuracy"] == 1
    for values in steps.values():
        margin = values["rewards/chosen"] - values["rewards/rejected"]
        assert values["rewards/margin"] == pytest.approx(margin, abs=1e-5)
    assert "reference" in [r.phase for r in records if isinstance(r, Phase)]
    checkpoints = ready(records)
    assert {step: one.kind for step, one in checkpoints.items()} == dict.fromkeys((3, 6, 8), "full")

    # In the middle of a pass: order of pairs, optimiser and references go on as they were.
    point = plans.ResumePoint(3, checkpoints[3].training_state_path)
    resumed = attempts("resumed", "dpo", resume_from=point, steps=8, **PARAMS).run()
    assert_same(series(resumed), {step: steps[step] for step in range(4, 9)}, 1e-6)
    # They were kept with the training state.
    assert "reference" not in [r.phase for r in resumed if isinstance(r, Phase)]

    shared = attempts("shared", "dpo", slots=2, steps=4, **{**PARAMS, "micro_batch_size": 4}).run()
    assert_same(series(shared), {step: steps[step] for step in range(1, 5)}, 1e-4)


def assert_same(found: dict[int, dict[str, float]], expected: dict[int, dict[str, float]], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for step, values in expected.items():
        assert found[step] == pytest.approx(values, abs=tolerance), step


# Each loss switches the adapter off for its reference before the first step. One in CI: what it is asked is the same.
@pytest.mark.parametrize(
    "loss_type", ["ipo", *(pytest.param(name, marks=pytest.mark.long) for name in ("sigmoid", "hinge"))]
)
def test_an_adapter_over_a_bf16_base_learns_in_every_step(
    attempts: AttemptMaker, tiny_model: Path, tmp_path: Path, loss_type: str
) -> None:
    base = store_as(tiny_model, tmp_path / "base", torch.bfloat16)
    lora = {"rank": 4, "alpha": 8}
    maker = replace(attempts, model=base)
    attempt = maker("adapter", "dpo", steps=5, save_every_steps=1, loss_type=loss_type, beta=0.5, lora=lora, **PARAMS)
    records = attempt.run()
    steps = series(records)
    # Both log-ratios are 0 at first.
    first = {"ipo": 1.0, "sigmoid": math.log(2), "hinge": 1.0}[loss_type]
    assert steps[1]["train/loss"] == pytest.approx(first, abs=1e-5) and steps[5]["train/loss"] < first
    assert min(values["train/grad_norm"] for values in steps.values()) > 0
    checkpoints = ready(records)
    assert {step: one.kind for step, one in checkpoints.items()} == dict.fromkeys(range(1, 6), "adapter")
    weights = {(Path(one.path) / "adapter_model.safetensors").read_bytes() for one in checkpoints.values()}
    assert len(weights) == 5, "each step changes the adapter"

    references = kept_references(Path(checkpoints[2].training_state_path))
    met = [pair for pair, values in enumerate(references) if not math.isnan(values[0])]
    # Those that a pass of four steps and the first of the next are made of.
    assert met == list(range(64))
    expected = base_logps(base, Path(attempt.plan.train_path), met[:8])
    assert [references[pair] for pair in met[:8]] == [pytest.approx(values, abs=1e-4) for values in expected]


def kept_references(state: Path) -> list[list[float]]:
    from safetensors.torch import load_file

    [path] = state.glob("*/references.safetensors")
    return load_file(path)["references"].tolist()


def base_logps(model: Path, train: Path, pairs: list[int]) -> list[list[float]]:
    """Log-probability of chosen and rejected under the base model, by transformers, one sequence at a time."""
    import torch

    from services.trainer.verifier.generate import Answerer
    from services.trainer.verl.trainers.pair_rows import PairRows

    loaded = Answerer(model, dtype="float32")
    rows = PairRows(train, loaded.tokenizer, 32, lambda *_: None)

    def logp(tokens_T: Any, mask_T: Any) -> float:
        with torch.no_grad():
            logp_T_V = loaded.model(tokens_T[None]).logits[0].log_softmax(-1)
        return float((logp_T_V[:-1].gather(1, tokens_T[1:, None]).squeeze(1) * mask_T[1:]).sum())

    return [[logp(*side) for side in rows[pair]["sides"]] for pair in pairs]


def test_simpo_needs_no_reference(attempts: AttemptMaker) -> None:
    records = attempts("simpo", "dpo", steps=3, loss_type="simpo", beta=2.0, gamma=0.5, **PARAMS).run()
    steps = series(records)
    first = steps[1]
    assert steps[3]["train/loss"] < first["train/loss"]
    # Eight tokens an answer, its end included: the reward is beta times their mean.
    assert first["rewards/chosen"] == pytest.approx(2.0 * first["logps/chosen"] / 7, rel=1e-4)
    assert "reference" not in [r.phase for r in records if isinstance(r, Phase)]
    assert not list(Path(ready(records)[3].training_state_path).glob("*/references.safetensors"))


def test_held_out_pairs_are_measured_as_they_are_trained(attempts: AttemptMaker) -> None:
    params = {**PARAMS, "validation": {"rows": 16, "max_new_tokens": 8}, "save_every_steps": 1}
    attempt = attempts("held-out", "dpo", steps=3, **params)
    trained_rows_as_held_out(attempt, 16)
    records = attempt.run()
    steps, checkpoints = series(records), ready(records)
    [base] = [r.values for r in records if isinstance(r, Metrics) and r.step == 0]
    measured = [base, checkpoints[1].metrics, checkpoints[2].metrics]
    # All pairs are a step, whose values are those of the weights before its update.
    for step, metrics in enumerate(measured, start=1):
        for held_out, trained in (
            ("loss", "train/loss"),
            ("margin", "rewards/margin"),
            ("accuracy", "rewards/accuracy"),
        ):
            if (step, held_out) != (1, "accuracy"):  # of equals, by rounding
                assert metrics[f"validation/{held_out}"] == pytest.approx(steps[step][trained], abs=1e-4)
    assert measured[0]["validation/accuracy"] == 0 and measured[2]["validation/loss"] < math.log(2)
    assert measured[0]["validation/pairs/count"] == 16 and "validation/score/mean" not in measured[2]
