"""Proximal policy optimisation with a critic."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

from pydantic import Field

from services.mesh.errors import Violation
from services.mesh.validation.params import STRICT_FIELDS
from services.mesh.validation.partial import collect_violations
from services.models.kinds import REWARD_MODEL
from services.trainer.algorithms import algorithms, headline
from services.trainer.algorithms.headline import Headline
from services.trainer.algorithms.policy_gradient import (
    DATASET_FORMATS,
    Answers,
    KlCoefficient,
    KlIn,
    KlKind,
    PolicyParams,
    micro_batch_size,
    policy_plan,
)
from services.trainer.algorithms.policy_gradient_validators import check_answers_a_pass, check_policy, check_whitened
from services.trainer.algorithms.validators import VALIDATION_FORMATS
from services.trainer.algorithms.verl_config import engine_overrides, model_overrides, optimizer_overrides, total_steps
from services.trainer.training.launch_plan import JobFacts, LaunchPlan, PlanInputs


@dataclass(frozen=True)
class CriticSettings:
    """The critic: a model of its own, all its weights, with a head that says what an answer will be worth."""

    __pydantic_config__ = STRICT_FIELDS
    model: Annotated[
        str | None,
        Field(
            max_length=400,
            description="reward model that it starts from: projects/p/models/m, or a checkpoint of reward_model;"
            " null: the job's base model with a new head",
            json_schema_extra=REWARD_MODEL,
        ),
    ] = None
    learning_rate: Annotated[float, Field(gt=0, le=1, description="peak of AdamW's rate")] = 1e-5
    warmup_steps: Annotated[int, Field(ge=0, description="steps at the start in which only the critic learns")] = 0
    value_clip: Annotated[float, Field(gt=0, description="a value moves by at most this in a step's updates")] = 0.2
    micro_batch_size: Annotated[
        int | None, Field(ge=1, description="answers a forward pass on one slot; null takes the policy's")
    ] = None
    gradient_clip: Annotated[float, Field(gt=0, description="largest norm of the gradient")] = 1.0


DEFAULT_CRITIC = CriticSettings()


@dataclass(frozen=True)
class PpoParams(PolicyParams):
    samples_per_prompt: Answers = 1
    kl_coefficient: KlCoefficient = 0.02
    kl_kind: KlKind = "kl"
    kl_in: KlIn = "reward"
    gamma: Annotated[float, Field(gt=0, le=1, description="discount a token")] = 1.0
    gae_lambda: Annotated[
        float, Field(ge=0, le=1, description="1 trusts the rewards that came, 0 the critic's next value")
    ] = 0.95
    critic: CriticSettings = DEFAULT_CRITIC


@algorithms.register("ppo")
class Ppo:
    """Proximal policy optimisation: a critic learns what to expect of an answer, the policy what beats it.

    With token rewards r_t = −β·log(π/π_ref), plus the answer's reward at its last token, and the critic's values V, the
    advantage is A_t = Σ_k (γλ)^k·δ_(t+k), δ_t = r_t + γ·V_(t+1) − V_t (Schulman et al. 2016, arXiv:1506.02438),
    whitened over the step; the policy maximises the mean of min(ρ·A, clip(ρ, 1 − low, 1 + high)·A) (Schulman et al.
    2017, arXiv:1707.06347), the critic minimises ½·max((V − R)², (V clipped around its old value − R)²), R = A + V
    before whitening. Coefficient and λ after Ouyang et al. 2022, arXiv:2203.02155. Run by verl's synchronous PPO
    trainer.

    Not where several answers a prompt are cheap and a rule judges them: `grpo` needs no second model. Not for few
    steps: until the critic has learnt, its advantages are noise (see critic.warmup_steps).
    """

    Params = PpoParams
    dataset_formats: ClassVar[tuple[str, ...]] = DATASET_FORMATS
    validation_formats: ClassVar[tuple[str, ...]] = VALIDATION_FORMATS
    needs_reward: ClassVar[bool] = True
    headline_metrics: ClassVar[tuple[Headline, ...]] = (
        *headline.POLICY,
        Headline("critic/explained_variance", "explained variance"),
    )

    @staticmethod
    def check(params: PpoParams, facts: JobFacts) -> list[Violation]:
        size = "critic.micro_batch_size"
        return collect_violations(
            lambda: check_policy(params, facts, critics=1),
            lambda: check_whitened(params),
            lambda: check_answers_a_pass(size, params.critic.micro_batch_size, params, facts),
            lambda: _check_warmup(params, facts),
            lambda: _check_critic(params, facts),
        )

    @staticmethod
    def plan(params: PpoParams, inputs: PlanInputs) -> LaunchPlan:
        verl = {
            "algorithm.adv_estimator": "gae",
            "algorithm.gamma": params.gamma,
            "algorithm.lam": params.gae_lambda,
            # verl's is the first step at which the policy is updated.
            "trainer.critic_warmup": params.critic.warmup_steps and params.critic.warmup_steps + 1,
            **_critic(params, inputs),
        }
        return policy_plan("ppo", params, inputs, verl)


def _check_warmup(params: PpoParams, facts: JobFacts) -> list[Violation]:
    if params.critic.warmup_steps == 0:
        return []
    steps = _steps(params, facts)
    if not 0 < steps <= params.critic.warmup_steps:
        return []
    return [Violation("critic.warmup_steps", f"must be below the {steps} steps of the job")]


def _steps(params: PpoParams, facts: JobFacts) -> int:
    if params.steps is not None:
        return params.steps
    return total_steps(None, params.epochs, facts.train_rows, params.prompts_per_step)


def _check_critic(params: PpoParams, facts: JobFacts) -> list[Violation]:
    """What a critic reads is what the policy has read and written."""
    length = params.prompt_tokens + params.response_tokens
    context = facts.critic.context_length if facts.critic is not None else None
    if context is None or length <= context:
        return []
    message = f"takes {context} tokens, and max_prompt_length and max_response_length are {length} together"
    return [Violation("critic.model", message)]


def _critic(params: PpoParams, inputs: PlanInputs) -> dict[str, Any]:
    """verl's section on the critic; what is not set there follows the policy's."""
    micro_batch = params.critic.micro_batch_size or micro_batch_size(params, inputs)
    if params.critic.model:
        inputs = replace(inputs, model_path=inputs.reward_site.models.get(params.critic.model, ""))
    return {
        **model_overrides("critic.model", replace(params, lora=None), inputs),
        **engine_overrides("critic.fsdp", params, inputs.device),
        **optimizer_overrides("critic.optim", params),
        "critic.optim.lr": params.critic.learning_rate,
        "critic.optim.clip_grad": params.critic.gradient_clip,
        "critic.strategy": "fsdp2",
        "critic.ppo_micro_batch_size_per_gpu": micro_batch,
        # verl's V1 trainer hands the line above to no engine, which then fills batches up to a number of tokens.
        "critic.fsdp.use_dynamic_bsz": False,
        "critic.fsdp.micro_batch_size_per_gpu": micro_batch,
        "critic.fsdp.infer_micro_batch_size_per_gpu": micro_batch,
        "critic.data_loader_seed": params.seed,
        "critic.cliprange_value": params.critic.value_clip,
        "critic.loss_agg_mode": "token-mean",
    }
