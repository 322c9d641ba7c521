"""Settings of verl that a job may change besides its parameters, by verl's own dotted names.

OPEN is the whole of it: numbers, switches and named choices that are read inside the training. Nothing is open that
names a path, a module, a class, a file or a host, that the platform sets itself, or that is free text (OmegaConf would
read an environment variable out of `${oc.env:…}`). Their types and defaults are verl's and stand in
`verl_settings.json`, because a service never imports verl; services/trainer/verl/dump_settings.py writes it.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from services.mesh.errors import Violation
from services.trainer.algorithms.common_params import RunParams

SETTINGS_FILE = Path(__file__).with_name("verl_settings.json")

_ENGINE = (
    "reshard_after_forward",
    "forward_prefetch",
    "fsdp_size",
    "wrap_policy.min_num_params",
    "full_determinism",
    "entropy_from_logits_with_chunking",
    "entropy_from_logits_chunk_size",
    "use_no_sync_for_gradient_accumulation",
    "use_torch_compile",
)
_OPTIMIZER = ("lr_warmup_steps", "num_cycles", "zero_indexed_step")
_MODEL = ("enable_activation_offload", "use_liger", "use_fused_kernels", "tiled_mlp.enabled", "tiled_mlp.num_shards")
_ACTOR = (
    "tau_pos",
    "tau_neg",
    "shuffle",
    "use_dynamic_bsz",
    "ppo_max_token_len_per_gpu",
    "policy_loss.loss_mode",
    "policy_loss.clip_cov_ratio",
    "policy_loss.clip_cov_lb",
    "policy_loss.clip_cov_ub",
    "policy_loss.kl_cov_ratio",
    "policy_loss.ppo_kl_coef",
)
# What our rollout on transformers does not read.
_VLLM = (
    "tensor_model_parallel_size",
    "gpu_memory_utilization",
    "enforce_eager",
    "max_num_batched_tokens",
    "enable_chunked_prefill",
    "enable_prefix_caching",
    "ignore_eos",
)
_ROLLOUT = (*_VLLM, "max_num_seqs", "layered_summon", "log_prob_max_token_len_per_gpu")
_ALGORITHM = (
    "norm_adv_by_std_in_grpo",
    "rollout_correction.rollout_is",
    "rollout_correction.rollout_is_threshold",
    "rollout_correction.rollout_is_batch_normalize",
    "kl_ctrl.type",
    "kl_ctrl.horizon",
    "kl_ctrl.target_kl",
    "filter_groups.max_inflight_gen_batches",
)
# By configuration of verl, then by section of it.
OPEN: dict[str, dict[str, tuple[str, ...]]] = {
    "sft_trainer_engine": {"engine": _ENGINE, "optim": _OPTIMIZER, "model": _MODEL},
    "ppo_trainer": {
        "actor_rollout_ref.actor": _ACTOR,
        "actor_rollout_ref.actor.fsdp_config": _ENGINE,
        "actor_rollout_ref.actor.optim": _OPTIMIZER,
        "actor_rollout_ref.ref": ("log_prob_max_token_len_per_gpu",),
        "actor_rollout_ref.ref.fsdp_config": _ENGINE,
        "actor_rollout_ref.rollout": _ROLLOUT,
        "actor_rollout_ref.model": _MODEL,
        "critic": ("shuffle", "ppo_epochs"),
        "critic.fsdp": _ENGINE,
        "critic.optim": _OPTIMIZER,
        "critic.model": _MODEL,
        "algorithm": _ALGORITHM,
    },
}
# What a text may be, by the last part of the name; no other text is taken.
CHOICES: dict[str, tuple[str | None, ...]] = {
    "loss_mode": ("vanilla", "gspo", "sapo", "clip_cov", "kl_cov", "geo_mean", "cispo", "gpg"),
    "rollout_is": (None, "token", "sequence"),
    "type": ("fixed", "adaptive"),
}


VLLM_ONLY = frozenset(f"actor_rollout_ref.rollout.{name}" for name in _VLLM)


def flat(overrides: Mapping[str, Any] | None, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of each; names may be nested or dotted."""
    for key, value in (overrides or {}).items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from flat(value, f"{name}.")
        else:
            yield name, value


def applied(verl: dict[str, Any], params: RunParams) -> dict[str, Any]:
    """`verl` with the job's own settings, which win."""
    return {**verl, **dict(flat(params.verl_overrides))}


def check_overrides(params: RunParams) -> list[Violation]:
    """Every name that is not open, with the nearest that is, and every value that is not of verl's type."""
    known = open_settings(type(params))
    found: list[Violation] = []
    for name, value in flat(params.verl_overrides):
        if name not in known:
            found.append(Violation(f"verl_overrides.{name}", _unknown(name, known)))
        elif (wanted := _mistake(value, known[name])) is not None:
            found.append(Violation(f"verl_overrides.{name}", f"must be {wanted} (got {repr(value)[:60]})"))
    return found


def open_settings(kind: type[RunParams]) -> dict[str, dict[str, Any]]:
    """What a job with such parameters may set: by name, with `default` and either `type` or `choices`."""
    known = settings()[kind.verl_config]
    if hasattr(kind, "critic"):
        return known
    return {name: entry for name, entry in known.items() if not name.startswith("critic.")}


@cache
def settings() -> dict[str, dict[str, dict[str, Any]]]:
    """The open settings by configuration and name, each with `default` and either `type` or `choices`."""
    return json.loads(SETTINGS_FILE.read_text("utf-8"))["settings"]


def _unknown(name: str, known: Mapping[str, Any]) -> str:
    message = "is no setting of verl that a job may change"
    # A part of the name is often left out, so the last parts are compared too.
    tails = {key.rpartition(".")[2]: key for key in reversed(list(known))}
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    near = near or [tails[tail] for tail in difflib.get_close_matches(name.rpartition(".")[2], tails, n=1, cutoff=0.8)]
    return f"{message}; did you mean {near[0]}?" if near else message


def _mistake(value: Any, entry: Mapping[str, Any]) -> str | None:
    """What `value` should be; None where it is that."""
    if "choices" in entry:
        return None if value in entry["choices"] and not isinstance(value, bool) else f"one of {entry['choices']}"
    if entry["type"] == "boolean":
        return None if isinstance(value, bool) else "true or false"
    whole = isinstance(value, int) and not isinstance(value, bool)
    if entry["type"] == "integer":
        return None if whole else "a whole number"
    return None if whole or (isinstance(value, float) and math.isfinite(value)) else "a number"
