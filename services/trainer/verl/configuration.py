"""A launch plan as verl's configuration."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf, open_dict

from services.models.loading import attention
from services.trainer.training.launch_plan import LaunchPlan, rl_task
from services.trainer.verl.checkpoints import resume_folder
from services.trainer.verl.patches.hooks import ROLLOUT

SAVED = ["model", "optimizer", "extra", "hf_model"]
LOADED = ["model", "optimizer", "extra"]


def sft_config(plan: LaunchPlan) -> DictConfig:
    return _compose(
        "sft_trainer_engine",
        plan,
        {
            "data.num_workers": 0,
            "optim.total_training_steps": plan.total_steps,
            # Saves at the last step in any case.
            "trainer.save_freq": plan.save_every_steps or -1,
            "trainer.total_epochs": 1,
            # Among slots; each sorts its rows itself.
            "trainer.balance_batch": plan.slots > 1,
            "checkpoint.save_contents": SAVED,
            "checkpoint.load_contents": LOADED,
            **_training("engine", "optim", plan),
        },
    )


def rl_config(plan: LaunchPlan) -> DictConfig:
    actor = "actor_rollout_ref.actor"
    return _compose(
        "ppo_trainer",
        plan,
        {
            "data.dataloader_num_workers": 0,
            # Of a validation set that verl never sees.
            "data.val_batch_size": 1,
            "trainer.val_before_train": False,
            # Saves at the last step whenever it saves at all.
            "trainer.save_freq": plan.save_every_steps or plan.total_steps,
            "trainer.total_epochs": 1_000_000,
            f"{actor}.checkpoint.save_contents": SAVED,
            f"{actor}.checkpoint.load_contents": LOADED,
            "transfer_queue.enable": True,
            "transfer_queue.backend.SimpleStorage.num_data_storage_units": 1,
            **_training(f"{actor}.fsdp_config", f"{actor}.optim", plan),
            **_training("critic.fsdp", "critic.optim", plan),
            **_rewarding(plan),
        },
    )


def epochs_for(total_steps: int, steps_per_epoch: int) -> int:
    """Enough passes for `total_steps`, and one to spare: a run resumed at a pass's end must not find none left."""
    return math.ceil(total_steps / max(1, steps_per_epoch)) + 1


def answers_in_batches(plan: LaunchPlan) -> bool:
    """Whether a step's prompts are answered by our own engine, all at once (rollout/batch_generation.py)."""
    return plan.verl["actor_rollout_ref.rollout.name"] == ROLLOUT


def with_attention(verl: dict[str, Any]) -> dict[str, Any]:
    """`verl` with each `attn_implementation` auto replaced by what is installed here, and packed where that can be; and
    sdpa by what a model takes that sdpa does not compute (`loading.attention`).
    """
    best = "flash_attention_2" if find_spec("flash_attn") else "sdpa"
    chosen = dict(verl)
    for key in verl:
        model, _, found = key.rpartition(".override_config.attn_implementation")
        if found or not model:
            continue
        if verl[key] == "auto":
            chosen[key] = best
            chosen[f"{model}.use_remove_padding"] = best == "flash_attention_2"
        if chosen[key] == "sdpa" and f"{model}.path" in verl:
            chosen[key] = attention(Path(verl[f"{model}.path"]))
    return chosen


def _training(engine: str, optimizer: str, plan: LaunchPlan) -> dict[str, Any]:
    """What verl's defaults cost where they bring nothing."""
    settings: dict[str, Any] = {}
    if plan.slots == 1:
        # A slot of its own holds all weights anyway; otherwise they are put together twice in a step.
        settings[f"{engine}.reshard_after_forward"] = False
    if plan.device == "cpu":
        # One pass over the weights in place of one for each term of the update.
        settings[f"{optimizer}.override_optimizer_config"] = {"fused": True}
    return settings


def _rewarding(plan: LaunchPlan) -> dict[str, Any]:
    task = rl_task(plan)
    if answers_in_batches(plan):
        # Answers are scored where they are collected (rollout/batch_generation.py): no workers for that.
        return {"reward.num_workers": 0, "actor_rollout_ref.rollout.agent.num_workers": 1}
    return {
        "reward.num_workers": 4,
        "reward.custom_reward_function.path": "pkg://services.trainer.verl.rollout.reward_function",
        "reward.custom_reward_function.name": "compute_score",
        "reward.custom_reward_function.reward_kwargs": {
            "reward": _json(task.reward),
            "held_out_reward": _json(task.held_out_reward) if task.held_out_reward else "",
            "site": _json(plan.reward_site),
        },
    }


def _json(value: Any) -> str:
    """JSON in which OmegaConf, which these settings pass through, finds nothing to put something in the place of."""
    return msgspec.json.encode(value).decode().replace("$", "\\u0024")


def _compose(name: str, plan: LaunchPlan, settings: dict[str, Any]) -> DictConfig:
    work_dir = Path(plan.work_dir)
    common = {
        "trainer.device": plan.device,
        "trainer.nnodes": 1,
        "trainer.n_gpus_per_node": plan.slots,
        "trainer.total_training_steps": plan.total_steps,
        "trainer.test_freq": -1,
        "trainer.logger": [],
        "trainer.project_name": "rlhf",
        "trainer.experiment_name": plan.job_uid,
        # verl's scratch place; what is kept moves to checkpoints/.
        "trainer.default_local_dir": str(work_dir / "verl"),
        "trainer.resume_mode": "resume_path" if plan.resume_from else "disable",
        "trainer.resume_from_path": str(resume_folder(plan.resume_from)) if plan.resume_from else None,
    }
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose(name)
    with open_dict(config):
        for key, value in {**common, **settings, **with_attention(plan.verl)}.items():
            OmegaConf.update(config, key, value, merge=True, force_add=True)
    return config
