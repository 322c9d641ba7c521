"""Supervised fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from services.mesh.errors import Violation
from services.mesh.params import STRICT_FIELDS
from services.trainer.algorithms import algorithms
from services.trainer.algorithms.settings import (
    DEFAULT_VALIDATION,
    EXACT_REWARD,
    LoraSettings,
    Precision,
    RewardSettings,
    ValidationSettings,
    check_common,
    check_divides,
    check_length,
    check_memory,
    engine_overrides,
    largest_divisor,
    model_overrides,
    total_steps,
    validation_plan,
)
from services.trainer.plan import JobFacts, LaunchPlan, PlanInputs


@dataclass(frozen=True)
class SftParams:
    __pydantic_config__ = STRICT_FIELDS
    learning_rate: Annotated[float, Field(gt=0, le=1, description="peak of AdamW's rate; LoRA wants ten times")] = 1e-5
    scheduler: Annotated[Literal["constant", "cosine"], Field(description="rate after the warm-up")] = "cosine"
    warmup_ratio: Annotated[float, Field(ge=0, le=0.5, description="share of steps with a rising rate")] = 0.03
    weight_decay: Annotated[float, Field(ge=0, le=1, description="Of AdamW, decoupled.")] = 0.01
    batch_size: Annotated[int, Field(ge=1, le=65_536, description="rows a step")] = 64
    micro_batch_size: Annotated[
        int | None, Field(ge=1, description="rows a forward pass on one slot; null chooses")
    ] = None
    epochs: Annotated[int, Field(ge=1, le=1000, description="passes over the rows, where steps is null")] = 1
    steps: Annotated[int | None, Field(ge=1, le=10_000_000, description="optimizer steps; null counts epochs")] = None
    max_length: Annotated[int, Field(ge=8, le=1_048_576, description="tokens; longer rows are left out")] = 2048
    gradient_clip: Annotated[float, Field(gt=0, description="largest norm of the gradient")] = 1.0
    seed: Annotated[int, Field(ge=0, lt=2**31, description="Of every random choice.")] = 42
    save_every_steps: Annotated[int, Field(ge=0, description="0 saves at the end only")] = 0
    precision: Annotated[Precision, Field(description="auto: fp32 on CPU, bf16 on CUDA")] = "auto"
    gradient_checkpointing: Annotated[bool, Field(description="less memory, a third more compute")] = False
    lora: Annotated[LoraSettings | None, Field(description="null trains all weights")] = None
    validation: ValidationSettings = DEFAULT_VALIDATION
    reward: Annotated[RewardSettings, Field(description="scores the validation answers")] = EXACT_REWARD


@algorithms.register("sft")
class Sft:
    """Supervised fine-tuning: imitate the assistant's turns of conversations.

    Minimises the mean negative log-likelihood of the tokens of assistant turns, −(1/N) Σ log π(token | what came
    before); every other token is context and carries no loss (Ouyang et al. 2022, section 3.5, arXiv:2203.02155).
    Run by verl's SFT trainer.

    Not for rows whose answers are wrong or of mixed quality: they are imitated all the same (use preferences or a
    reward), nor for teaching facts in a few epochs.
    """

    Params = SftParams
    dataset_formats: ClassVar[tuple[str, ...]] = ("messages",)
    needs_reward: ClassVar[bool] = False

    @staticmethod
    def check(params: SftParams, facts: JobFacts) -> list[Violation]:
        found = check_common(params.reward, Sft.dataset_formats, facts, params.batch_size, "batch_size")
        found += check_divides("slots", facts.slots, params.batch_size, "batch_size")
        if params.micro_batch_size is not None and params.batch_size % facts.slots == 0:
            per_slot = params.batch_size // facts.slots
            found += check_divides("micro_batch_size", params.micro_batch_size, per_slot, "the rows of one slot")
        found += check_length("max_length", params.max_length, facts)
        return found + check_memory(facts, params.lora)

    @staticmethod
    def plan(params: SftParams, inputs: PlanInputs) -> LaunchPlan:
        per_slot = params.batch_size // inputs.slots
        steps = total_steps(params.steps, params.epochs, inputs.train_rows, params.batch_size)
        verl = {
            **model_overrides("model", inputs, params.lora, params.gradient_checkpointing),
            **engine_overrides("engine", inputs.device, params.precision),
            "engine.strategy": "fsdp2",
            "engine.seed": params.seed,
            "data.train_batch_size": params.batch_size,
            "data.micro_batch_size_per_gpu": params.micro_batch_size or largest_divisor(per_slot, 64),
            "data.use_dynamic_bsz": False,
            "data.max_length": params.max_length,
            "optim.lr": params.learning_rate,
            "optim.lr_scheduler_type": params.scheduler,
            "optim.lr_warmup_steps_ratio": params.warmup_ratio,
            "optim.weight_decay": params.weight_decay,
            "optim.clip_grad": params.gradient_clip,
        }
        return LaunchPlan(
            **inputs.common(),
            algorithm="sft",
            validation=validation_plan(params.validation, params.reward, inputs),
            reward=None,
            trainer="sft",
            verl=verl,
            adapter=params.lora is not None,
            max_tokens=params.max_length,
            total_steps=steps,
            save_every_steps=params.save_every_steps,
            seed=params.seed,
        )
