"""Parameters as sections of verl's configuration, by dotted name."""

from __future__ import annotations

import math
from typing import Any, Literal

from services import rewards
from services.rewards.spec import RewardSpec
from services.trainer.algorithms.common_params import Precision, RewardSettings, RunParams, ValidationSettings
from services.trainer.training.launch_plan import Device, PlanInputs, ValidationPlan

CPU_ROWS = 16


def resolve_precision(precision: Precision, device: Device) -> Literal["fp32", "bf16"]:
    if precision != "auto":
        return precision
    return "fp32" if device == "cpu" else "bf16"


def largest_divisor(number: int, at_most: int) -> int:
    """The largest divisor of `number` that is at most `at_most`."""
    return max(size for size in range(1, max(1, min(number, at_most)) + 1) if number % size == 0)


def rows_a_pass(rows: int, device: Device, on_cuda: int) -> int:
    """A divisor of a slot's `rows`, for a forward pass where the job leaves that open.

    On CPU few: no kernel wants more, rows of about the same length are padded little, and what a pass computes stays
    in the caches. Of 8 to 16 rows of 15 to 63 tokens a pass took 0.7 of the time that 64 took, from 0.4 to 10 million
    weights.
    """
    if device == "cuda":
        return largest_divisor(rows, on_cuda)
    divisors = (size for size in range(1, rows + 1) if rows % size == 0)
    return min(divisors, key=lambda size: abs(math.log(size / CPU_ROWS)))


def total_steps(steps: int | None, epochs: int, rows: int, batch_size: int) -> int:
    """`steps` where given, else as many as `epochs` passes over the rows take (a last, incomplete batch is left)."""
    return steps if steps is not None else epochs * (rows // batch_size)


def model_overrides(prefix: str, params: RunParams, inputs: PlanInputs) -> dict[str, Any]:
    """verl's model section: where the model lies, and how attention and adapters are done on this device."""
    lora = params.lora
    # What is installed on CUDA is known where the plan is carried out (configuration.py).
    attention = "sdpa" if inputs.device == "cpu" else params.attention
    overrides: dict[str, Any] = {
        f"{prefix}.path": inputs.model_path,
        f"{prefix}.trust_remote_code": False,
        f"{prefix}.enable_gradient_checkpointing": params.gradient_checkpointing,
        f"{prefix}.override_config.attn_implementation": attention,
        # Packed sequences need flash attention's variable-length kernels.
        f"{prefix}.use_remove_padding": attention == "flash_attention_2",
    }
    if lora is not None:
        overrides[f"{prefix}.lora_rank"] = lora.rank
        overrides[f"{prefix}.lora_alpha"] = lora.alpha
        overrides[f"{prefix}.target_modules"] = lora.target_modules
        # The rollout gets merged weights: one form for every engine.
        overrides[f"{prefix}.lora.merge"] = True
        # Read by our hook; verl has no such setting.
        overrides[f"{prefix}.lora.dropout"] = lora.dropout
    return overrides


def engine_overrides(prefix: str, params: RunParams, device: Device) -> dict[str, Any]:
    """verl's FSDP2 section: numeric precision; no compiler on CPU, where it costs more than a small job takes."""
    compute = resolve_precision(params.precision, device)
    return {
        f"{prefix}.strategy": "fsdp2",
        f"{prefix}.seed": params.seed,
        f"{prefix}.mixed_precision": {"param_dtype": compute, "reduce_dtype": "fp32", "buffer_dtype": "fp32"},
        f"{prefix}.dtype": "float32" if compute == "fp32" else "bfloat16",
        f"{prefix}.use_torch_compile": device == "cuda",
        f"{prefix}.param_offload": params.offload == "all",
        f"{prefix}.optimizer_offload": params.offload != "none",
        f"{prefix}.ulysses_sequence_parallel_size": params.sequence_parallel,
    }


def optimizer_overrides(prefix: str, params: RunParams) -> dict[str, Any]:
    """verl's section on AdamW and its learning rate."""
    return {
        f"{prefix}.lr": params.learning_rate,
        f"{prefix}.lr_scheduler_type": params.scheduler,
        f"{prefix}.min_lr_ratio": params.min_learning_rate_ratio,
        f"{prefix}.lr_warmup_steps_ratio": params.warmup_ratio,
        f"{prefix}.weight_decay": params.weight_decay,
        f"{prefix}.betas": [params.adam_beta1, params.adam_beta2],
        f"{prefix}.clip_grad": params.gradient_clip,
    }


def reward_spec(reward: RewardSettings) -> RewardSpec:
    """A checked reward with every parameter spelt out."""
    return RewardSpec(reward.name, rewards.complete(reward.name, reward.params))


def validation_plan(
    settings: ValidationSettings, reward: RewardSettings | None, inputs: PlanInputs
) -> ValidationPlan | None:
    """None when the job has no validation rows."""
    if inputs.validation_path is None or inputs.validation_rows == 0:
        return None
    return ValidationPlan(
        rows=min(settings.rows, inputs.validation_rows),
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        batch_size=settings.batch_size,
        reward=reward_spec(reward) if reward is not None else None,
    )
