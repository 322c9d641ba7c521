"""The algorithms that answer prompts: what sets each apart, in its checks and in its plan."""

from __future__ import annotations

from typing import Any

import pytest

from services.trainer.algorithms import algorithms
from services.trainer.algorithms.policy_gradient import PolicyParams
from services.trainer.algorithms.retention import DEFAULT_CHECKPOINTS
from services.trainer.training.disk_estimate import forecast
from services.trainer.training.tasks import RlTask
from services.trainer.verl.rollout.overlong import Overlong
from tests.unit.trainer.test_algorithms import check, plan

ACTOR = "actor_rollout_ref.actor"
POLICY = [name for name in algorithms.names() if issubclass(algorithms.get(name).Params, PolicyParams)]
COMPARING = ["grpo", "gspo", "dapo", "dr_grpo", "rloo"]


def test_these_are_the_policy_algorithms() -> None:
    assert sorted([*COMPARING, "ppo", "reinforce_plus_plus"]) == POLICY


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("grpo", {"algorithm.adv_estimator": "grpo", f"{ACTOR}.loss_agg_mode": "token-mean"}),
        (
            "gspo",
            {
                f"{ACTOR}.policy_loss.loss_mode": "gspo",
                f"{ACTOR}.loss_agg_mode": "seq-mean-token-mean",
                f"{ACTOR}.clip_ratio_low": 3e-4,
                f"{ACTOR}.clip_ratio_high": 4e-4,
                f"{ACTOR}.ppo_mini_batch_size": 16,
            },
        ),
        (
            "dr_grpo",
            {
                "algorithm.norm_adv_by_std_in_grpo": False,
                f"{ACTOR}.loss_agg_mode": "seq-mean-token-sum-norm",
                f"{ACTOR}.loss_scale_factor": 512,
            },
        ),
        (
            "rloo",
            {
                "algorithm.adv_estimator": "rloo",
                "algorithm.use_kl_in_reward": True,
                "algorithm.kl_penalty": "kl",
                "algorithm.kl_ctrl.kl_coef": 0.03,
                f"{ACTOR}.use_kl_loss": False,
                f"{ACTOR}.loss_agg_mode": "seq-mean-token-sum",
            },
        ),
        ("reinforce_plus_plus", {"algorithm.adv_estimator": "reinforce_plus_plus", "algorithm.gamma": 1.0}),
        (
            "dapo",
            {
                f"{ACTOR}.clip_ratio_low": 0.2,
                f"{ACTOR}.clip_ratio_high": 0.28,
                f"{ACTOR}.loss_agg_mode": "token-mean",
                f"{ACTOR}.ppo_mini_batch_size": 4,
                "algorithm.filter_groups.enable": True,
                "algorithm.filter_groups.metric": "score",
                "algorithm.filter_groups.max_num_gen_batches": 10,
                "reward.reward_manager.name": "dapo",
                "reward.reward_kwargs.max_resp_len": 512,
            },
        ),
        (
            "ppo",
            {
                "algorithm.adv_estimator": "gae",
                "algorithm.lam": 0.95,
                "algorithm.use_kl_in_reward": True,
                "actor_rollout_ref.rollout.n": 1,
                "critic.model.path": "/m",
                "critic.optim.lr": 1e-5,
                "critic.cliprange_value": 0.2,
                "trainer.critic_warmup": 0,
            },
        ),
    ],
)
def test_a_plan_has_what_sets_the_algorithm_apart(name: str, settings: dict[str, Any]) -> None:
    made = plan(name, {})
    assert isinstance(made.task, RlTask) and made.algorithm == name
    assert {key: made.verl.get(key) for key in settings} == settings


def test_the_critic_is_trained_whole_and_the_policy_waits_for_it() -> None:
    params = {"lora": {"rank": 4}, "prompts_per_step": 8, "critic": {"warmup_steps": 5, "micro_batch_size": 2}}
    made = plan("ppo", params)
    assert made.adapter and "critic.model.lora_rank" not in made.verl
    # verl's number is the first step that updates the policy.
    assert made.verl["trainer.critic_warmup"] == 6
    # The engine's own settings: verl's trainer passes on no other.
    assert made.verl["critic.fsdp.use_dynamic_bsz"] is False
    assert (
        made.verl["critic.fsdp.micro_batch_size_per_gpu"]
        == made.verl["critic.fsdp.infer_micro_batch_size_per_gpu"]
        == 2
    )
    assert plan("ppo", {"prompts_per_step": 8}).verl["critic.fsdp.micro_batch_size_per_gpu"] == 8


def test_the_group_baseline_is_another_estimator() -> None:
    made = plan("reinforce_plus_plus", {"group_baseline": True, "samples_per_prompt": 4})
    assert made.verl["algorithm.adv_estimator"] == "reinforce_plus_plus_baseline"


def test_what_dapo_adds_can_be_left_out() -> None:
    made = plan("dapo", {"dynamic_sampling": False, "overlong_penalty": 0})
    assert made.verl["algorithm.filter_groups.enable"] is False
    assert not [key for key in made.verl if key.startswith("reward.")]
    buffer = plan("dapo", {"overlong_buffer": 7}).verl["reward.reward_kwargs.overlong_buffer_cfg"]
    assert (buffer["len"], plan("dapo", {}).verl["reward.reward_kwargs.overlong_buffer_cfg"]["len"]) == (7, 102)


@pytest.mark.parametrize(
    ("prompts", "mini_batch", "updates"), [(64, None, 4), (6, None, 3), (3, None, 3), (1, None, 1), (64, 64, 1)]
)
def test_a_step_of_gspo_is_several_updates_where_the_prompts_allow(
    prompts: int, mini_batch: int | None, updates: int
) -> None:
    made = plan("gspo", {"prompts_per_step": prompts, "mini_batch_size": mini_batch})
    assert prompts // made.verl[f"{ACTOR}.ppo_mini_batch_size"] == updates
    # Of several updates, the ratio is to what the trainer computed before the first.
    assert made.verl["algorithm.rollout_correction.bypass_mode"] is (updates == 1)


@pytest.mark.parametrize(
    ("name", "params", "field"),
    [
        ("ppo", {"steps": 5, "critic": {"warmup_steps": 5}}, "critic.warmup_steps"),
        ("ppo", {"prompts_per_step": 8, "critic": {"micro_batch_size": 3}}, "critic.micro_batch_size"),
        ("ppo", {"prompts_per_step": 1}, "prompts_per_step"),
        ("ppo", {"kl_in": "loss"}, "kl_kind"),
        ("reinforce_plus_plus", {"prompts_per_step": 1}, "prompts_per_step"),
        ("reinforce_plus_plus", {"group_baseline": True}, "samples_per_prompt"),
        ("reinforce_plus_plus", {"group_baseline": True, "samples_per_prompt": 2, "gamma": 0.9}, "gamma"),
        ("dapo", {"overlong_buffer": 600}, "overlong_buffer"),
        ("gspo", {"prompts_per_step": 16, "mini_batch_size": 5}, "mini_batch_size"),
    ],
)
def test_a_check_names_the_field(name: str, params: dict[str, Any], field: str) -> None:
    assert list(check(name, params)) == [field]


def test_a_critic_is_one_more_trained_model() -> None:
    facts = {"model_parameters": 10**9, "memory_bytes": 24 * 10**9}
    assert check("reinforce_plus_plus", {}, **facts) == {}
    assert "slots" in check("ppo", {}, **facts)


@pytest.mark.parametrize("params", [{}, {"lora": {"rank": 4}}])
def test_a_critic_is_saved_with_the_training_state(params: dict[str, Any]) -> None:
    def state_bytes(algorithm: str) -> int:
        made = plan(algorithm, params)
        found = forecast(made, DEFAULT_CHECKPOINTS, 1000, None)
        assert found is not None
        return found.training_state_bytes

    assert state_bytes("ppo") - state_bytes("grpo") == 12 * 1000


@pytest.mark.parametrize(("tokens", "lost"), [(1, 0), (6, 0), (7, -0.25), (8, -0.5), (10, -1)])
def test_the_penalty_on_long_answers_grows_over_the_buffer(tokens: int, lost: float) -> None:
    from services.rewards import Score

    shaped = Overlong(limit=10, buffer=4, penalty=1.0).applied(Score(0.5, {"correct": 1.0}), tokens)
    assert shaped == Score(0.5 + lost, {"correct": 1.0, "overlong": lost})
