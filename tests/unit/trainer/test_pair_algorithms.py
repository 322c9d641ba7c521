"""`dpo` and `reward_model`: what their checks refuse, and what their plans say."""

from __future__ import annotations

from typing import Any

import pytest

from services.mesh.errors import InvalidArgument
from services.mesh.validation.params import parse
from services.trainer.algorithms import algorithms
from services.trainer.training import launch_plan as plans
from services.trainer.training.tasks import DpoLoss, DpoTask, PairValidationPlan, RewardModelLoss, RewardModelTask
from tests.unit.trainer.test_algorithms import check, plan

OVERRIDE = "verl_overrides.model.use_fused_kernels"


def test_all_that_is_wrong_with_pairs_is_said_at_once() -> None:
    params = {
        "loss_type": "hinge", "label_smoothing": 0.1, "gamma": 1.0, "batch_size": 63, "max_length": 100,
        "reward": {"name": "nosuch"}, "offload": "all",
    }  # fmt: skip
    facts: dict[str, Any] = {"train_format": "messages", "train_rows": 10, "slots": 2, "context_length": 64}
    assert check("dpo", params, **facts).keys() == {
        "dataset", "batch_size", "slots", "max_length", "label_smoothing", "gamma", "reward.name", "offload",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "params", "facts", "field"),
    [
        ("dpo", {"loss_type": "ipo", "label_smoothing": 0.1}, {}, "label_smoothing"),
        ("dpo", {"loss_type": "simpo", "label_smoothing": 0.1}, {}, "label_smoothing"),
        ("dpo", {"gamma": 0.5}, {}, "gamma"),
        ("dpo", {"micro_batch_size": 10}, {}, "micro_batch_size"),
        ("dpo", {"batch_size": 30}, {"slots": 4}, "slots"),
        ("reward_model", {}, {"validation_format": "prompt"}, "validation_dataset"),
        ("reward_model", {}, {"train_format": "messages"}, "dataset"),
        ("reward_model", {"sequence_parallel": 2}, {"device": "cuda", "slots": 2}, "sequence_parallel"),
        ("reward_model", {"verl_overrides": {"model": {"use_fused_kernels": True}}}, {}, OVERRIDE),
        (
            "reward_model",
            {"checkpoints": {"keep_best": 2, "metric": "validation/score/mean"}},
            {},
            "checkpoints.metric",
        ),
    ],
)
def test_a_check_names_the_field(name: str, params: dict, facts: dict, field: str) -> None:
    assert list(check(name, params, **{"validation_format": "preference", **facts})) == [field]


def test_what_is_right_is_not_refused() -> None:
    pairs = {"validation_format": "preference"}
    for validation in ("prompt", "messages", "preference", None):
        assert check("dpo", {"label_smoothing": 0.1}, validation_format=validation) == {}
    assert check("dpo", {"loss_type": "simpo", "gamma": 0.5}) == {}
    for metric in (None, "validation/accuracy", "validation/margin", "validation/loss"):
        assert check("reward_model", {"checkpoints": {"keep_best": 2, "metric": metric}}, **pairs) == {}
    # The reference takes no memory: a model that can be trained at all can be trained by preferences.
    facts = {"model_parameters": 10**9, "memory_bytes": 17 * 10**9}
    assert check("dpo", {}, **facts) == check("sft", {}, **facts) == {}


@pytest.mark.parametrize(
    ("name", "params", "field"),
    [
        ("dpo", {"beta": 0}, "params.beta"),
        ("dpo", {"label_smoothing": 0.5}, "params.label_smoothing"),
        ("dpo", {"loss_type": "kto"}, "params.loss_type"),
        ("reward_model", {"margin": -1}, "params.margin"),
        # It writes no answers that could be scored.
        ("reward_model", {"reward": {"name": "exact"}}, "params.reward"),
        ("reward_model", {"validation": {"max_new_tokens": 8}}, "params.validation.max_new_tokens"),
    ],
)
def test_wrong_params_are_refused(name: str, params: dict, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse(algorithms.get(name).Params, params)
    assert [violation.field for violation in caught.value.violations] == [field]


@pytest.mark.parametrize(
    ("params", "loss"),
    [
        ({}, DpoLoss("sigmoid", 0.1)),
        ({"beta": 0.3, "label_smoothing": 0.1}, DpoLoss("sigmoid", 0.3, label_smoothing=0.1)),
        ({"loss_type": "simpo"}, DpoLoss("simpo", 2.0, gamma=1.0)),
        ({"loss_type": "simpo", "beta": 2.5, "gamma": 0.0}, DpoLoss("simpo", 2.5, gamma=0.0)),
    ],
)
def test_each_loss_has_its_own_defaults(params: dict, loss: DpoLoss) -> None:
    made = plan("dpo", params)
    assert made.task == DpoTask(loss)
    assert loss.has_reference is (loss.kind != "simpo")


def test_verl_counts_two_rows_a_pair_and_never_splits_one() -> None:
    made = plan("dpo", {"batch_size": 24, "micro_batch_size": 3}, slots=4)
    assert made.verl["data.train_batch_size"] == 24
    assert made.verl["data.micro_batch_size_per_gpu"] == 6
    assert made.verl["trainer.balance_batch"] is False and made.verl["data.use_dynamic_bsz"] is False
    assert made.total_steps == 1000 // 24
    for slots in (1, 2, 4, 8):
        rows = plan("reward_model", {}, slots=slots).verl["data.micro_batch_size_per_gpu"]
        assert rows % 2 == 0 and (64 // slots * 2) % rows == 0


def test_a_reward_model_is_validated_on_pairs_and_its_adapters_are_merged() -> None:
    made = plan("reward_model", {"lora": {}, "margin": 0.5, "max_length": 99, "validation": {"rows": 600}})
    pairs = PairValidationPlan(rows=500, batch_size=16, max_tokens=99)
    assert made.task == RewardModelTask(RewardModelLoss(margin=0.5), pairs) and made.pair_validation == pairs
    assert made.validation is None
    assert (made.adapter, made.checkpoint_kind) == (False, "reward")
    assert plan("reward_model", {}, validation_path=None).pair_validation is None
    assert plan("dpo", {"lora": {}}).checkpoint_kind == "adapter" and plan("dpo", {}).checkpoint_kind == "full"
    assert plans.decode(plans.encode(made)) == made
