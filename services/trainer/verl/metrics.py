"""verl's metric names as users meet them. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

# What verification/weight_changes.py reports of an update: 1 where it changed a weight.
WEIGHTS_CHANGED = "weights_changed"
# verl's name → ours. What is not listed keeps its name under "verl/".
NAMES = {
    # SFT
    "train/loss": "train/loss",
    "train/grad_norm": "train/grad_norm",
    "train/lr": "train/learning_rate",
    "train/global_tokens": "train/tokens",
    "val/loss": "validation/loss",
    WEIGHTS_CHANGED: "train/weights_changed",
    # Pairs
    "rewards/chosen": "rewards/chosen",
    "rewards/rejected": "rewards/rejected",
    "rewards/margin": "rewards/margin",
    "rewards/accuracy": "rewards/accuracy",
    "logps/chosen": "logps/chosen",
    "logps/rejected": "logps/rejected",
    # RL
    "actor/pg_loss": "train/loss",
    "actor/grad_norm": "train/grad_norm",
    f"actor/{WEIGHTS_CHANGED}": "train/weights_changed",
    f"critic/{WEIGHTS_CHANGED}": "critic/weights_changed",
    "actor/lr": "train/learning_rate",
    "perf/total_num_tokens": "train/tokens",
    "actor/entropy": "actor/entropy",
    # The same mean, taken in the update; the only one where sampling's log-probabilities are not computed again.
    "actor/entropy_loss": "actor/entropy",
    "actor/ppo_kl": "actor/kl_to_rollout",
    "actor/kl_loss": "actor/kl",
    "actor/pg_clipfrac": "actor/clip_fraction",
    "actor/kl_coef": "actor/kl_coefficient",
    "actor/reward_kl_penalty": "actor/kl",
    "actor/reward_kl_penalty_coeff": "actor/kl_coefficient",
    "critic/vf_loss": "critic/loss",
    "critic/vf_clipfrac": "critic/value_clip_fraction",
    "critic/vf_explained_var": "critic/explained_variance",
    "critic/values/mean": "critic/value/mean",
    "critic/grad_norm": "critic/grad_norm",
    "critic/lr": "critic/learning_rate",
    "critic/returns/mean": "return/mean",
    "critic/score/mean": "reward/mean",
    "critic/score/max": "reward/max",
    "critic/score/min": "reward/min",
    "critic/advantages/mean": "advantage/mean",
    "critic/advantages/max": "advantage/max",
    "critic/advantages/min": "advantage/min",
    "training/filter_groups/evicted_samples": "rollout/uniform_prompts",
    "training/filter_groups/discarded_surplus_samples": "rollout/surplus_prompts",
    "prompt_length/mean": "rollout/prompt_length/mean",
    "response_length/mean": "rollout/response_length/mean",
    "response_length/max": "rollout/response_length/max",
    "response_length/clip_ratio": "rollout/truncated_fraction",
    "training/rollout_probs_diff_mean": "rollout/probability_difference/mean",
    "training/rollout_probs_diff_max": "rollout/probability_difference/max",
    "timing_s/step": "time/step_seconds",
    "timing_s/gen": "time/rollout_seconds",
    "timing_s/reward": "time/reward_seconds",
    "timing_s/old_log_prob": "time/log_prob_seconds",
    "timing_s/ref": "time/reference_seconds",
    "timing_s/values": "time/value_seconds",
    "timing_s/update_critic": "time/critic_seconds",
    "timing_s/adv": "time/advantage_seconds",
    "timing_s/update_actor": "time/update_seconds",
    "timing_s/update_weights": "time/weight_sync_seconds",
    "timing_s/save_checkpoint": "time/checkpoint_seconds",
}


def translate(raw: Mapping[str, Any]) -> dict[str, float]:
    """Every number of `raw` under our names; what is not a number is left out."""
    values: dict[str, float] = {}
    for name, value in raw.items():
        if name == WEIGHTS_CHANGED and isinstance(value, list):
            # verl's SFT trainer has a list of one for each slot.
            value = max((max(slot) if isinstance(slot, list) else slot for slot in value), default=math.nan)
        try:
            number = float(value)
        except (TypeError, ValueError):
            continue
        values[NAMES.get(name) or f"verl/{name}"] = number
    return values
