"""Parameters that every algorithm has, and the groups they are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from services.mesh.validation.params import STRICT_FIELDS
from services.trainer.algorithms.retention import DEFAULT_CHECKPOINTS, CheckpointSettings

Precision = Literal["auto", "fp32", "bf16"]
Attention = Literal["auto", "sdpa", "flash_attention_2"]
Offload = Literal["none", "optimizer", "all"]
# Of a row, where the parameter is null and the model has as many; longer ones take memory that few rows are worth.
ROW_TOKENS = 2048


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters (Hu et al. 2021): W + (alpha/rank)·B·A, only A and B are trained."""

    __pydantic_config__ = STRICT_FIELDS
    rank: Annotated[int, Field(ge=1, le=1024, description="inner dimension of the adapters")] = 16
    alpha: Annotated[float, Field(gt=0, description="scale; twice the rank is customary")] = 32
    target_modules: Annotated[
        str | list[str], Field(description="'all-linear', or the names of the layers that get adapters")
    ] = "all-linear"
    dropout: Annotated[float, Field(ge=0, lt=1, description="of the adapters' input, while training")] = 0.0


@dataclass(frozen=True)
class RewardSettings:
    """A reward by name, with its parameters."""

    __pydantic_config__ = STRICT_FIELDS
    name: Annotated[str, Field(description="one of the registered rewards")] = "exact"
    params: Annotated[dict[str, Any], Field(description="parameters of that reward")] = field(default_factory=dict)


@dataclass(frozen=True)
class ValidationSettings:
    """How the held-out rows are answered, and their loss taken, at step 0 and at every checkpoint."""

    __pydantic_config__ = STRICT_FIELDS
    rows: Annotated[int, Field(ge=1, le=100_000, description="rows answered and measured, from the first on")] = 64
    max_new_tokens: Annotated[int, Field(ge=1, le=32_768, description="longest answer, in tokens")] = 256
    temperature: Annotated[float, Field(ge=0, le=2, description="0 takes the likeliest token")] = 0.0
    batch_size: Annotated[int, Field(ge=1, le=4096, description="rows answered together")] = 64


# Defaults as values, not factories: so they stand in the JSON Schema that forms are drawn from.
DEFAULT_VALIDATION = ValidationSettings()
EXACT_REWARD = RewardSettings()

# Common to all algorithms; an algorithm that has no such parameter ignores the line.
OTHER_NAMES = {
    "lr": "learning_rate",
    "lr_scheduler_type": "scheduler",
    "warmup_steps": "warmup_ratio",
    "max_grad_norm": "gradient_clip",
    "num_train_epochs": "epochs",
    "num_epochs": "epochs",
    "max_steps": "steps",
    "save_steps": "save_every_steps",
    "save_total_limit": "checkpoints.keep_last",
    "bf16": "precision",
    "fp16": "precision",
    "dtype": "precision",
    "torch_dtype": "precision",
    "attn_implementation": "attention",
    "use_peft": "lora",
    "peft_config": "lora",
    "r": "lora.rank",
    "lora_r": "lora.rank",
    "lora_rank": "lora.rank",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "lora_target_modules": "lora.target_modules",
    "per_device_eval_batch_size": "validation.batch_size",
    "reward_funcs": "reward",
}


@dataclass(frozen=True)
class RunParams:
    """What is asked of every training: optimiser, length of the run, numerics, adapters.

    An algorithm inherits and gives the fields that it sees otherwise a default of its own.
    """

    __pydantic_config__ = STRICT_FIELDS
    learning_rate: Annotated[float, Field(gt=0, le=1, description="peak of AdamW's rate; LoRA wants ten times")] = 1e-5
    scheduler: Annotated[Literal["constant", "cosine"], Field(description="rate after the warm-up")] = "cosine"
    min_learning_rate_ratio: Annotated[
        float, Field(ge=0, le=1, description="where cosine ends, as a share of the peak")
    ] = 0.0
    warmup_ratio: Annotated[float, Field(ge=0, le=0.5, description="share of steps with a rising rate")] = 0.03
    weight_decay: Annotated[float, Field(ge=0, le=1, description="Of AdamW, decoupled.")] = 0.01
    adam_beta1: Annotated[float, Field(ge=0, lt=1, description="decay of AdamW's mean of gradients")] = 0.9
    adam_beta2: Annotated[float, Field(ge=0, lt=1, description="decay of AdamW's mean of squares")] = 0.999
    gradient_clip: Annotated[float, Field(gt=0, description="largest norm of the gradient")] = 1.0
    epochs: Annotated[int, Field(ge=1, le=1000, description="passes over the rows, where steps is null")] = 1
    steps: Annotated[int | None, Field(ge=1, le=10_000_000, description="steps; null counts epochs")] = None
    seed: Annotated[int, Field(ge=0, lt=2**31, description="Of every random choice.")] = 42
    save_every_steps: Annotated[
        int | None,
        Field(ge=0, description="null: some ten saves a run, at least 20 steps apart; 0: at the end only"),
    ] = None
    checkpoints: Annotated[CheckpointSettings, Field(description="which of them stay")] = DEFAULT_CHECKPOINTS
    precision: Annotated[Precision, Field(description="auto: fp32 on CPU, bf16 on CUDA")] = "auto"
    gradient_checkpointing: Annotated[bool, Field(description="less memory, a third more compute")] = False
    attention: Annotated[
        Attention, Field(description="auto: flash_attention_2 where it is installed on CUDA, else sdpa")
    ] = "auto"
    offload: Annotated[Offload, Field(description="what waits in the host's memory between its uses; CUDA only")] = (
        "none"
    )
    sequence_parallel: Annotated[
        int, Field(ge=1, le=64, description="slots that share one long sequence (Ulysses); CUDA only")
    ] = 1
    lora: Annotated[LoraSettings | None, Field(description="null trains all weights")] = None
    verl_overrides: Annotated[
        dict[str, Any] | None,
        Field(description="settings of verl by its own dotted names: those of `rlhf algorithm overrides`"),
    ] = None
    # Which of verl's configurations those names are in.
    verl_config: ClassVar[str] = "sft_trainer_engine"
    # Series of held-out rows as training would see them, by the format of the rows.
    held_out: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    # Names of TRL, transformers and peft for a parameter that has another one here.
    other_names: ClassVar[Mapping[str, str]] = OTHER_NAMES

    def fitted(self, context_length: int | None) -> Self:
        """With the lengths that are null: what the model has, within bounds; None where nobody knows what it has."""
        return self


@dataclass(frozen=True)
class RowParams(RunParams):
    """Of one that trains on whole rows, none longer than `max_length`."""

    other_names: ClassVar[Mapping[str, str]] = {
        **OTHER_NAMES,
        "prompts_per_step": "batch_size",
        "gradient_accumulation_steps": "batch_size",
        "per_device_train_batch_size": "micro_batch_size",
        "max_seq_length": "max_length",
    }
    max_length: Annotated[
        int | None,
        Field(
            ge=8,
            le=1_048_576,
            description=f"tokens; longer rows are left out; null: what the model has, at most {ROW_TOKENS}",
        ),
    ] = None

    def fitted(self, context_length: int | None) -> Self:
        return replace(self, max_length=self.max_length or min(ROW_TOKENS, context_length or ROW_TOKENS))

    @property
    def row_tokens(self) -> int:
        """`max_length`, or what is taken for it where nobody knows what the model has."""
        return self.max_length or ROW_TOKENS


@dataclass(frozen=True)
class TrainingParams(RunParams):
    """And of one that makes a language model: how its answers to held-out rows are had and scored."""

    validation: ValidationSettings = DEFAULT_VALIDATION
    reward: Annotated[
        RewardSettings | None,
        Field(
            description="scores the validation answers; null: exact for rows of format prompt, none for conversations"
            " and pairs"
        ),
    ] = None
