"""What the algorithms share that answer prompts and learn from what the answers are worth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from services.trainer.algorithms.common_params import EXACT_REWARD, OTHER_NAMES, RewardSettings, TrainingParams
from services.trainer.algorithms.overrides import applied, flat
from services.trainer.algorithms.verl_config import (
    engine_overrides,
    largest_divisor,
    model_overrides,
    optimizer_overrides,
    resolve_precision,
    reward_spec,
    rows_a_pass,
    total_steps,
    validation_plan,
)
from services.trainer.training.launch_plan import Device, JobFacts, LaunchPlan, PlanInputs
from services.trainer.training.tasks import RlTask

DATASET_FORMATS = ("prompt",)
ACTOR, REFERENCE, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.ref", "actor_rollout_ref.rollout"
# verl's names of how the losses of tokens become one number.
Aggregation = Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"]
NORMALISED: Aggregation = "seq-mean-token-sum-norm"
# Of a prompt, and of an answer, where the parameter is null and the model has room for both.
SIDE_TOKENS = 512
_NULL_LENGTH = f"what the model has room for, at most {SIDE_TOKENS}"
# Fields to which an algorithm gives a default of its own.
Group = Annotated[int, Field(ge=2, le=1024, description="answers a prompt, G of the formula")]
Answers = Annotated[int, Field(ge=1, le=1024, description="answers a prompt")]
KlCoefficient = Annotated[float, Field(ge=0, le=10, description="0 keeps no reference model")]
KlKind = Annotated[
    Literal["low_var_kl", "kl", "abs", "mse"],
    Field(description="estimator: Schulman's k3, k1, its absolute value, k2"),
]
KlIn = Annotated[Literal["loss", "reward"], Field(description="what the KL is subtracted from")]
ClipLow = Annotated[float, Field(gt=0, lt=1, description="the ratio may fall to 1 − this")]
ClipHigh = Annotated[float, Field(gt=0, le=10, description="the ratio may rise to 1 + this")]
LossAggregation = Annotated[
    Aggregation,
    Field(description="how the losses of tokens become one; the last divides sums by max_response_length"),
]


@dataclass(frozen=True)
class PolicyParams(TrainingParams):
    """Sampling, the reward, and the policy's update by the clipped ratio (Schulman et al. 2017, arXiv:1707.06347)."""

    verl_config: ClassVar[str] = "ppo_trainer"
    # A step's updates where `mini_batch_size` is null, or the next smaller number that divides it. With a single one
    # every ratio is 1, and the clip has nothing to do.
    updates: ClassVar[int] = 1
    learning_rate: Annotated[float, Field(gt=0, le=1, description="peak of AdamW's rate; LoRA wants ten times")] = 1e-6
    scheduler: Annotated[Literal["constant", "cosine"], Field(description="rate after the warm-up")] = "constant"
    warmup_ratio: Annotated[float, Field(ge=0, le=0.5, description="share of steps with a rising rate")] = 0.0
    reward: Annotated[RewardSettings, Field(description="what an answer is worth")] = EXACT_REWARD
    held_out_reward: Annotated[
        RewardSettings | None, Field(description="a second judge of the same answers: shown, never trained on")
    ] = None
    prompts_per_step: Annotated[int, Field(ge=1, le=65_536, description="prompts answered a step")] = 64
    samples_per_prompt: Answers = 8
    mini_batch_size: Annotated[
        int | None, Field(ge=1, description="prompts an optimizer update; null takes all of a step at once")
    ] = None
    micro_batch_size: Annotated[
        int | None, Field(ge=1, description="answers a forward pass on one slot; null chooses")
    ] = None
    passes_per_step: Annotated[int, Field(ge=1, le=64, description="times a step's answers are learnt from")] = 1
    temperature: Annotated[float, Field(gt=0, le=2, description="of sampling while training")] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1, description="below 1 the sampled policy is not the trained one")] = 1.0
    top_k: Annotated[int | None, Field(ge=1, description="likeliest tokens sampled from; null is all")] = None
    rollout_engine: Annotated[
        Literal["auto", "transformers", "vllm"],
        Field(description="what answers; auto: vllm on CUDA, else transformers"),
    ] = "auto"
    max_prompt_length: Annotated[
        int | None, Field(ge=1, le=1_048_576, description=f"tokens; longer ones are left out; null: {_NULL_LENGTH}")
    ] = None
    max_response_length: Annotated[
        int | None, Field(ge=1, le=1_048_576, description=f"tokens an answer may have; null: {_NULL_LENGTH}")
    ] = None
    kl_coefficient: KlCoefficient = 0.0
    kl_kind: KlKind = "low_var_kl"
    kl_in: KlIn = "loss"
    clip_low: ClipLow = 0.2
    clip_high: ClipHigh = 0.2
    dual_clip: Annotated[
        float, Field(gt=1, description="bound of the ratio where the advantage is negative (Ye et al. 2020)")
    ] = 3.0
    entropy_coefficient: Annotated[float, Field(ge=0, le=1, description="bonus on the policy's entropy")] = 0.0
    loss_aggregation: LossAggregation = "token-mean"
    other_names: ClassVar[Mapping[str, str]] = {
        **OTHER_NAMES,
        "gradient_accumulation_steps": "prompts_per_step",
        "batch_size": "prompts_per_step",
        "train_batch_size": "prompts_per_step",
        "num_generations": "samples_per_prompt",
        "max_completion_length": "max_response_length",
        "max_new_tokens": "max_response_length",
        "beta": "kl_coefficient",
    }

    def fitted(self, context_length: int | None) -> Self:
        prompt, response = self.max_prompt_length, self.max_response_length
        if context_length is None:
            return replace(self, max_prompt_length=self.prompt_tokens, max_response_length=self.response_tokens)
        if prompt is None:
            prompt = min(SIDE_TOKENS, max(1, context_length - response if response else context_length // 2))
        if response is None:
            response = min(SIDE_TOKENS, max(1, context_length - prompt))
        return replace(self, max_prompt_length=prompt, max_response_length=response)

    @property
    def prompt_tokens(self) -> int:
        """`max_prompt_length`, or what is taken for it where nobody knows what the model has."""
        return self.max_prompt_length or SIDE_TOKENS

    @property
    def response_tokens(self) -> int:
        """The same of `max_response_length`."""
        return self.max_response_length or SIDE_TOKENS


@dataclass(frozen=True)
class GroupParams(PolicyParams):
    """Parameters of an algorithm that compares a prompt's answers with each other."""

    samples_per_prompt: Group = 8


def mini_batch_prompts(params: PolicyParams) -> int:
    """Prompts an update."""
    if params.mini_batch_size is not None:
        return params.mini_batch_size
    return params.prompts_per_step // largest_divisor(params.prompts_per_step, params.updates)


def mini_batch_answers(params: PolicyParams) -> int:
    return mini_batch_prompts(params) * params.samples_per_prompt


def policy_plan(algorithm: str, params: PolicyParams, inputs: PlanInputs, verl: dict[str, Any]) -> LaunchPlan:
    """A plan for verl's synchronous PPO trainer; `verl` is what sets this algorithm apart."""
    return LaunchPlan(
        **inputs.common(),
        algorithm=algorithm,
        validation=validation_plan(params.validation, params.reward, inputs),
        task=RlTask(
            reward=reward_spec(params.reward),
            held_out_reward=reward_spec(params.held_out_reward) if params.held_out_reward else None,
            learns_from="groups" if isinstance(params, GroupParams) else "rewards",
        ),
        verl=applied(_verl(params, inputs) | verl, params),
        adapter=params.lora is not None,
        max_tokens=params.prompt_tokens,
        total_steps=total_steps(params.steps, params.epochs, inputs.train_rows, params.prompts_per_step),
        save_every_steps=params.save_every_steps or 0,
        seed=params.seed,
    )


def _verl(params: PolicyParams, inputs: PlanInputs) -> dict[str, Any]:
    """What every policy algorithm sets of verl's configuration."""
    return {
        **model_overrides("actor_rollout_ref.model", params, inputs),
        **_actor(params, inputs),
        **_rollout(params, inputs),
        **_kl(params),
        "algorithm.rollout_correction.bypass_mode": _on_policy(params, inputs),
        "data.train_batch_size": params.prompts_per_step,
        "data.max_prompt_length": params.prompt_tokens,
        "data.max_response_length": params.response_tokens,
        "data.seed": params.seed,
    }


def micro_batch_size(params: PolicyParams, where: PlanInputs | JobFacts) -> int:
    """Answers a forward pass on one slot."""
    per_slot = mini_batch_answers(params) // where.slots
    return params.micro_batch_size or rows_a_pass(per_slot, where.device, 16)


def rollout_engine(params: PolicyParams, device: Device) -> str:
    """The name of the engine under verl's registry."""
    if params.rollout_engine != "auto":
        return params.rollout_engine
    return "transformers" if device == "cpu" else "vllm"


def _on_policy(params: PolicyParams, inputs: PlanInputs) -> bool:
    """Whether the log-probabilities of sampling are those before the update, so that computing them again is waste.

    So it is where a step is one update, nothing is cut off the distribution, and the rollout computes as the trainer
    does. vLLM's kernels differ from the trainer's, and verl merges adapters in bf16; there the difference must be seen.
    """
    one_update = mini_batch_prompts(params) == params.prompts_per_step and params.passes_per_step == 1
    same_numbers = inputs.device == "cpu" and resolve_precision(params.precision, inputs.device) == "fp32"
    uncut = params.top_p == 1 and params.top_k is None
    corrected = any(name.startswith("algorithm.rollout_correction.") for name, _ in flat(params.verl_overrides))
    # A KL in the reward is taken between the reference and the log-probabilities computed again.
    return one_update and same_numbers and uncut and params.lora is None and not _kl_in_reward(params) and not corrected


def _actor(params: PolicyParams, inputs: PlanInputs) -> dict[str, Any]:
    """verl's sections on the trained policy and, where KL is asked for, the reference."""
    micro_batch = micro_batch_size(params, inputs)
    return {
        **engine_overrides(f"{ACTOR}.fsdp_config", params, inputs.device),
        **engine_overrides(f"{REFERENCE}.fsdp_config", params, inputs.device),
        **optimizer_overrides(f"{ACTOR}.optim", params),
        f"{ACTOR}.strategy": "fsdp2",
        f"{ACTOR}.ppo_mini_batch_size": mini_batch_prompts(params),
        f"{ACTOR}.ppo_micro_batch_size_per_gpu": micro_batch,
        f"{ACTOR}.ppo_epochs": params.passes_per_step,
        f"{ACTOR}.use_torch_compile": inputs.device == "cuda",
        f"{ACTOR}.data_loader_seed": params.seed,
        f"{ACTOR}.clip_ratio": params.clip_low,
        f"{ACTOR}.clip_ratio_low": params.clip_low,
        f"{ACTOR}.clip_ratio_high": params.clip_high,
        f"{ACTOR}.clip_ratio_c": params.dual_clip,
        f"{ACTOR}.loss_agg_mode": params.loss_aggregation,
        # verl would take the longest answer of each micro-batch for the constant.
        f"{ACTOR}.loss_scale_factor": params.response_tokens if params.loss_aggregation == NORMALISED else None,
        f"{ACTOR}.entropy_coeff": params.entropy_coefficient,
        # Reported even where it is no part of the loss: a policy that collapses shows there first.
        f"{ACTOR}.calculate_entropy": True,
        f"{REFERENCE}.strategy": "fsdp2",
        f"{REFERENCE}.log_prob_micro_batch_size_per_gpu": micro_batch,
        f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu": micro_batch,
    }


def _kl(params: PolicyParams) -> dict[str, Any]:
    """verl's two places for a penalty on the distance from the reference."""
    in_reward = _kl_in_reward(params)
    return {
        f"{ACTOR}.use_kl_loss": params.kl_coefficient > 0 and not in_reward,
        f"{ACTOR}.kl_loss_coef": params.kl_coefficient,
        f"{ACTOR}.kl_loss_type": params.kl_kind,
        "algorithm.use_kl_in_reward": in_reward,
        "algorithm.kl_penalty": params.kl_kind,
        "algorithm.kl_ctrl.kl_coef": params.kl_coefficient,
    }


def _kl_in_reward(params: PolicyParams) -> bool:
    return params.kl_coefficient > 0 and params.kl_in == "reward"


def _rollout(params: PolicyParams, inputs: PlanInputs) -> dict[str, Any]:
    """verl's section on the engine that answers."""
    engine = rollout_engine(params, inputs.device)
    compute = resolve_precision(params.precision, inputs.device)
    return {
        f"{ROLLOUT}.name": engine,
        f"{ROLLOUT}.n": params.samples_per_prompt,
        f"{ROLLOUT}.temperature": params.temperature,
        f"{ROLLOUT}.top_p": params.top_p,
        f"{ROLLOUT}.top_k": params.top_k or -1,
        f"{ROLLOUT}.seed": params.seed,
        f"{ROLLOUT}.tensor_model_parallel_size": 1,
        f"{ROLLOUT}.dtype": "float32" if compute == "fp32" else "bfloat16",
        f"{ROLLOUT}.load_format": "dummy" if engine == "vllm" else "auto",
        # transformers frees nothing between rollout and training: both models fit, or the check has refused the job.
        f"{ROLLOUT}.free_cache_engine": engine == "vllm",
        f"{ROLLOUT}.calculate_log_probs": True,
    }
