"""Group relative policy optimisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

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
    resolve_precision,
    total_steps,
    validation_plan,
)
from services.trainer.plan import JobFacts, LaunchPlan, PlanInputs, RewardSpec


@dataclass(frozen=True)
class GrpoParams:
    __pydantic_config__ = STRICT_FIELDS
    learning_rate: Annotated[float, Field(gt=0, le=1, description="peak of AdamW's rate; LoRA wants ten times")] = 1e-6
    scheduler: Annotated[Literal["constant", "cosine"], Field(description="rate after the warm-up")] = "constant"
    warmup_ratio: Annotated[float, Field(ge=0, le=0.5, description="share of steps with a rising rate")] = 0.0
    weight_decay: Annotated[float, Field(ge=0, le=1, description="Of AdamW, decoupled.")] = 0.01
    prompts_per_step: Annotated[int, Field(ge=1, le=65_536, description="prompts answered a step")] = 64
    samples_per_prompt: Annotated[int, Field(ge=2, le=1024, description="answers a prompt, G of the formula")] = 8
    mini_batch_size: Annotated[
        int | None, Field(ge=1, description="prompts an optimizer update; null takes all of a step at once")
    ] = None
    micro_batch_size: Annotated[
        int | None, Field(ge=1, description="answers a forward pass on one slot; null chooses")
    ] = None
    epochs: Annotated[int, Field(ge=1, le=1000, description="passes over the prompts, where steps is null")] = 1
    steps: Annotated[int | None, Field(ge=1, le=10_000_000, description="steps; null counts epochs")] = None
    temperature: Annotated[float, Field(gt=0, le=2, description="of sampling while training")] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1, description="below 1 the sampled policy is not the trained one")] = 1.0
    max_prompt_length: Annotated[int, Field(ge=1, le=1_048_576, description="tokens; longer ones are left out")] = 512
    max_response_length: Annotated[int, Field(ge=1, le=1_048_576, description="tokens an answer may have")] = 512
    kl_coefficient: Annotated[float, Field(ge=0, le=10, description="0 keeps no reference model")] = 0.0
    kl_kind: Annotated[
        Literal["low_var_kl", "kl", "abs", "mse"], Field(description="estimator; low_var_kl is Schulman's k3")
    ] = "low_var_kl"
    clip_low: Annotated[float, Field(gt=0, lt=1, description="the ratio may fall to 1 − this")] = 0.2
    clip_high: Annotated[float, Field(gt=0, le=10, description="the ratio may rise to 1 + this")] = 0.2
    entropy_coefficient: Annotated[float, Field(ge=0, le=1, description="bonus on the policy's entropy")] = 0.0
    gradient_clip: Annotated[float, Field(gt=0, description="largest norm of the gradient")] = 1.0
    seed: Annotated[int, Field(ge=0, lt=2**31, description="Of every random choice.")] = 42
    save_every_steps: Annotated[int, Field(ge=0, description="0 saves at the end only")] = 0
    precision: Annotated[Precision, Field(description="auto: fp32 on CPU, bf16 on CUDA")] = "auto"
    gradient_checkpointing: Annotated[bool, Field(description="less memory, a third more compute")] = False
    lora: Annotated[LoraSettings | None, Field(description="null trains all weights")] = None
    validation: ValidationSettings = DEFAULT_VALIDATION
    reward: Annotated[RewardSettings, Field(description="what an answer is worth")] = EXACT_REWARD


@algorithms.register("grpo")
class Grpo:
    """Group relative policy optimisation: learn from the reward of several answers to one prompt, without a critic.

    For G answers with rewards r, each answer's advantage is (r − mean(r)) / (std(r) + ε) for all its tokens; the policy
    maximises min(ρ·A, clip(ρ, 1 − low, 1 + high)·A) averaged over tokens, ρ the ratio to the policy that sampled, minus
    kl_coefficient times an estimate of KL(π ‖ π_ref) (Shao et al. 2024, arXiv:2402.03300; two clips from Yu et al.
    2025, arXiv:2503.14476). Run by verl's synchronous PPO trainer.

    Not for rewards that a prompt's answers all share (all right or all wrong: the advantage is then 0), nor for a model
    that never gets an answer right: fine-tune it first.
    """

    Params = GrpoParams
    dataset_formats: ClassVar[tuple[str, ...]] = ("prompt",)
    needs_reward: ClassVar[bool] = True

    @staticmethod
    def check(params: GrpoParams, facts: JobFacts) -> list[Violation]:
        found = check_common(params.reward, Grpo.dataset_formats, facts, params.prompts_per_step, "prompts_per_step")
        mini_batch = params.mini_batch_size or params.prompts_per_step
        found += check_divides("mini_batch_size", mini_batch, params.prompts_per_step, "prompts_per_step")
        answers = mini_batch * params.samples_per_prompt
        found += check_divides("slots", facts.slots, answers, "the answers of a mini-batch")
        if params.micro_batch_size is not None and answers % facts.slots == 0:
            per_slot = answers // facts.slots
            found += check_divides("micro_batch_size", params.micro_batch_size, per_slot, "the answers of one slot")
        length = params.max_prompt_length + params.max_response_length
        found += check_length("max_response_length", length, facts)
        # The rollout holds a copy of its own, the reference another.
        copies = 1 + (params.kl_coefficient > 0 and params.lora is None)
        return found + check_memory(facts, params.lora, copies)

    @staticmethod
    def plan(params: GrpoParams, inputs: PlanInputs) -> LaunchPlan:
        steps = total_steps(params.steps, params.epochs, inputs.train_rows, params.prompts_per_step)
        verl = {
            **model_overrides("actor_rollout_ref.model", inputs, params.lora, params.gradient_checkpointing),
            **_actor(params, inputs),
            **_rollout(params, inputs),
            "algorithm.adv_estimator": "grpo",
            "algorithm.rollout_correction.bypass_mode": _on_policy(params, inputs),
            "data.train_batch_size": params.prompts_per_step,
            "data.max_prompt_length": params.max_prompt_length,
            "data.max_response_length": params.max_response_length,
            "data.seed": params.seed,
        }
        return LaunchPlan(
            **inputs.common(),
            algorithm="grpo",
            validation=validation_plan(params.validation, params.reward, inputs),
            reward=RewardSpec(params.reward.name, params.reward.params),
            trainer="rl",
            verl=verl,
            adapter=params.lora is not None,
            max_tokens=params.max_prompt_length,
            total_steps=steps,
            save_every_steps=params.save_every_steps,
            seed=params.seed,
        )


def _on_policy(params: GrpoParams, inputs: PlanInputs) -> bool:
    """Whether the log-probabilities of sampling are those before the update, so that computing them again is waste.

    So it is where a step is one update, nothing is cut off the distribution, and the rollout computes as the trainer
    does. vLLM's kernels differ from the trainer's, and verl merges adapters in bf16; there the difference must be seen.
    """
    one_update = params.mini_batch_size in (None, params.prompts_per_step)
    same_numbers = inputs.device == "cpu" and resolve_precision(params.precision, inputs.device) == "fp32"
    return one_update and same_numbers and params.lora is None and params.top_p == 1


def _actor(params: GrpoParams, inputs: PlanInputs) -> dict[str, Any]:
    """verl's sections on the trained policy and, where KL is asked for, the reference."""
    actor, reference = "actor_rollout_ref.actor", "actor_rollout_ref.ref"
    mini_batch = params.mini_batch_size or params.prompts_per_step
    per_slot = mini_batch * params.samples_per_prompt // inputs.slots
    micro_batch = params.micro_batch_size or largest_divisor(per_slot, 128 if inputs.device == "cpu" else 16)
    return {
        **engine_overrides(f"{actor}.fsdp_config", inputs.device, params.precision),
        **engine_overrides(f"{reference}.fsdp_config", inputs.device, params.precision),
        f"{actor}.fsdp_config.seed": params.seed,
        f"{actor}.strategy": "fsdp2",
        f"{actor}.ppo_mini_batch_size": mini_batch,
        f"{actor}.ppo_micro_batch_size_per_gpu": micro_batch,
        f"{actor}.use_torch_compile": inputs.device == "cuda",
        f"{actor}.data_loader_seed": params.seed,
        f"{actor}.optim.lr": params.learning_rate,
        f"{actor}.optim.lr_scheduler_type": params.scheduler,
        f"{actor}.optim.lr_warmup_steps_ratio": params.warmup_ratio,
        f"{actor}.optim.weight_decay": params.weight_decay,
        f"{actor}.optim.clip_grad": params.gradient_clip,
        f"{actor}.clip_ratio": params.clip_low,
        f"{actor}.clip_ratio_low": params.clip_low,
        f"{actor}.clip_ratio_high": params.clip_high,
        f"{actor}.entropy_coeff": params.entropy_coefficient,
        # Reported even where it is no part of the loss: a policy that collapses shows there first.
        f"{actor}.calculate_entropy": True,
        f"{actor}.use_kl_loss": params.kl_coefficient > 0,
        f"{actor}.kl_loss_coef": params.kl_coefficient,
        f"{actor}.kl_loss_type": params.kl_kind,
        f"{reference}.strategy": "fsdp2",
        f"{reference}.log_prob_micro_batch_size_per_gpu": micro_batch,
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu": micro_batch,
    }


def _rollout(params: GrpoParams, inputs: PlanInputs) -> dict[str, Any]:
    """verl's section on the engine that answers: transformers on CPU, vLLM on CUDA."""
    rollout = "actor_rollout_ref.rollout"
    compute = resolve_precision(params.precision, inputs.device)
    return {
        f"{rollout}.name": "transformers" if inputs.device == "cpu" else "vllm",
        f"{rollout}.n": params.samples_per_prompt,
        f"{rollout}.temperature": params.temperature,
        f"{rollout}.top_p": params.top_p,
        f"{rollout}.seed": params.seed,
        f"{rollout}.tensor_model_parallel_size": 1,
        f"{rollout}.dtype": "float32" if compute == "fp32" else "bfloat16",
        f"{rollout}.load_format": "auto" if inputs.device == "cpu" else "dummy",
        # On CPU nothing is freed between rollout and training: both models fit, or the check has refused the job.
        f"{rollout}.free_cache_engine": inputs.device == "cuda",
        f"{rollout}.calculate_log_probs": True,
    }
