"""Parameters that several algorithms share, the verl settings they become, and the checks on them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from services.mesh.errors import InvalidArgument, Violation
from services.mesh.params import STRICT_FIELDS
from services.mesh.params import parse as parse_params
from services.trainer.plan import Device, JobFacts, PlanInputs, RewardSpec, ValidationPlan
from services.trainer.rewards import rewards

Precision = Literal["auto", "fp32", "bf16"]
# A validation file holds questions with answers, or conversations whose last turn is the expected answer.
VALIDATION_FORMATS = ("prompt", "messages")


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters (Hu et al. 2021): W + (alpha/rank)·B·A, only A and B are trained."""

    __pydantic_config__ = STRICT_FIELDS
    rank: Annotated[int, Field(ge=1, le=1024, description="inner dimension of the adapters")] = 16
    alpha: Annotated[float, Field(gt=0, description="scale; twice the rank is customary")] = 32
    target_modules: Annotated[
        str | list[str], Field(description="'all-linear', or the names of the layers that get adapters")
    ] = "all-linear"


@dataclass(frozen=True)
class RewardSettings:
    """A rule reward by name, with its parameters."""

    __pydantic_config__ = STRICT_FIELDS
    name: Annotated[str, Field(description="one of the registered rewards")] = "exact"
    params: Annotated[dict[str, Any], Field(description="parameters of that reward")] = field(default_factory=dict)


@dataclass(frozen=True)
class ValidationSettings:
    """How the held-out rows are answered at step 0 and at every checkpoint."""

    __pydantic_config__ = STRICT_FIELDS
    rows: Annotated[int, Field(ge=1, le=100_000, description="rows answered, from the first on")] = 64
    max_new_tokens: Annotated[int, Field(ge=1, le=32_768, description="longest answer, in tokens")] = 256
    temperature: Annotated[float, Field(ge=0, le=2, description="0 takes the likeliest token")] = 0.0
    batch_size: Annotated[int, Field(ge=1, le=4096, description="rows answered together")] = 64


# Defaults as values, not factories: so they stand in the JSON Schema that forms are drawn from.
DEFAULT_VALIDATION = ValidationSettings()
EXACT_REWARD = RewardSettings()


def resolve_precision(precision: Precision, device: Device) -> Literal["fp32", "bf16"]:
    if precision != "auto":
        return precision
    return "fp32" if device == "cpu" else "bf16"


def largest_divisor(number: int, at_most: int) -> int:
    """The largest divisor of `number` that is at most `at_most`."""
    return max(size for size in range(1, max(1, min(number, at_most)) + 1) if number % size == 0)


def model_overrides(
    prefix: str, inputs: PlanInputs, lora: LoraSettings | None, gradient_checkpointing: bool
) -> dict[str, Any]:
    """verl's model section: where the model lies, and how attention and adapters are done on this device."""
    overrides: dict[str, Any] = {
        f"{prefix}.path": inputs.model_path,
        f"{prefix}.trust_remote_code": False,
        f"{prefix}.enable_gradient_checkpointing": gradient_checkpointing,
        # Packed sequences need flash attention's variable-length kernels.
        f"{prefix}.use_remove_padding": inputs.device == "cuda",
    }
    if inputs.device == "cpu":
        overrides[f"{prefix}.override_config.attn_implementation"] = "sdpa"
    if lora is not None:
        overrides[f"{prefix}.lora_rank"] = lora.rank
        overrides[f"{prefix}.lora_alpha"] = lora.alpha
        overrides[f"{prefix}.target_modules"] = lora.target_modules
        # The rollout gets merged weights: one form for every engine.
        overrides[f"{prefix}.lora.merge"] = True
    return overrides


def engine_overrides(prefix: str, device: Device, precision: Precision) -> dict[str, Any]:
    """verl's FSDP2 section: numeric precision; no compiler on CPU, where it costs more than a small job takes."""
    compute = resolve_precision(precision, device)
    return {
        f"{prefix}.mixed_precision": {"param_dtype": compute, "reduce_dtype": "fp32", "buffer_dtype": "fp32"},
        f"{prefix}.dtype": "float32" if compute == "fp32" else "bfloat16",
        f"{prefix}.use_torch_compile": device == "cuda",
    }


def validation_plan(settings: ValidationSettings, reward: RewardSettings, inputs: PlanInputs) -> ValidationPlan | None:
    """None when the job has no validation rows."""
    if inputs.validation_path is None or inputs.validation_rows == 0:
        return None
    return ValidationPlan(
        rows=min(settings.rows, inputs.validation_rows),
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        batch_size=settings.batch_size,
        reward=RewardSpec(reward.name, reward.params),
    )


def total_steps(steps: int | None, epochs: int, rows: int, batch_size: int) -> int:
    """`steps` where given, else as many as `epochs` passes over the rows take (a last, incomplete batch is left)."""
    return steps if steps is not None else epochs * (rows // batch_size)


def check_common(
    reward: RewardSettings, formats: tuple[str, ...], facts: JobFacts, batch_size: int, batch_field: str
) -> list[Violation]:
    """What holds for every algorithm: formats, a full batch, a reward that exists."""
    found: list[Violation] = []
    if facts.train_format not in formats:
        known = " or ".join(formats)
        found.append(Violation("dataset", f"is of format {facts.train_format!r}; this algorithm wants {known}"))
    if facts.validation_format not in (None, *VALIDATION_FORMATS):
        found.append(Violation("validation_dataset", f"is of format {facts.validation_format!r}; prompt or messages"))
    if batch_size > facts.train_rows:
        found.append(Violation(batch_field, f"must be at most the {facts.train_rows} rows of the dataset"))
    try:
        parse_params(rewards.get(reward.name, "reward.name").Params, reward.params, "reward.params")
    except InvalidArgument as error:
        found.extend(error.violations)
    return found


def check_divides(field_name: str, size: int, number: int, what: str) -> list[Violation]:
    if number % size == 0:
        return []
    sizes = ", ".join(str(n) for n in range(1, number + 1) if number % n == 0)
    return [Violation(field_name, f"must divide {what} ({number}): one of {sizes}")]


def check_length(field_name: str, tokens: int, facts: JobFacts) -> list[Violation]:
    if facts.context_length is None or tokens <= facts.context_length:
        return []
    return [Violation(field_name, f"{tokens} tokens are more than the model's context of {facts.context_length}")]


def check_memory(facts: JobFacts, lora: LoraSettings | None, copies: int = 0) -> list[Violation]:
    """Weights, gradients and Adam's two moments in fp32, `copies` further copies of the weights; no activations.

    A lower bound: what it refuses can't run; what it lets through may still run out of memory.
    """
    if facts.model_parameters is None or facts.memory_bytes is None:
        return []
    trained_bytes = 4 if lora is not None else 16
    needed = math.ceil(facts.model_parameters * (trained_bytes / facts.slots + 4 * copies))
    if needed <= facts.memory_bytes:
        return []
    message = (
        f"the model needs at least {needed / 2**30:.1f} GiB a slot, and a slot has {facts.memory_bytes / 2**30:.1f}"
    )
    remedy = "use lora, more slots or a smaller model" if lora is None else "use more slots or a smaller model"
    return [Violation("slots", f"{message}; {remedy}")]
