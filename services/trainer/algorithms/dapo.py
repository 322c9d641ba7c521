"""Decoupled clip and dynamic sampling policy optimisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field

from services.mesh.errors import Violation
from services.mesh.validation.partial import collect_violations
from services.trainer.algorithms import algorithms, headline
from services.trainer.algorithms.headline import Headline
from services.trainer.algorithms.policy_gradient import DATASET_FORMATS, ClipHigh, Group, GroupParams, policy_plan
from services.trainer.algorithms.policy_gradient_validators import check_policy
from services.trainer.algorithms.validators import VALIDATION_FORMATS
from services.trainer.training.launch_plan import JobFacts, LaunchPlan, PlanInputs


@dataclass(frozen=True)
class DapoParams(GroupParams):
    """A step is sixteen updates where `mini_batch_size` is null."""

    # Of the paper's experiments (section 4.1).
    updates: ClassVar[int] = 16
    samples_per_prompt: Group = 16
    clip_high: ClipHigh = 0.28
    dynamic_sampling: Annotated[
        bool,
        Field(description="replace prompts whose answers all have the same reward, penalties aside, by further ones"),
    ] = True
    max_generation_batches: Annotated[
        int, Field(ge=1, le=1000, description="times prompts_per_step that a step may sample before the run fails")
    ] = 10
    overlong_penalty: Annotated[
        float, Field(ge=0, le=1000, description="taken from the reward of a cut answer; 0 is none")
    ] = 1.0
    overlong_buffer: Annotated[
        int | None,
        Field(ge=1, description="tokens before the limit over which the penalty grows; null is a fifth of it"),
    ] = None


@algorithms.register("dapo")
class Dapo:
    """DAPO: GRPO with four changes that keep long reasoning from collapsing (Yu et al. 2025, arXiv:2503.14476).

    The clip reaches further up than down (1 − 0.2 … 1 + 0.28), so that rare tokens can gain; losses are averaged over
    tokens; prompts whose answers all have the same reward are replaced by further prompts, for they have no advantage
    but that of being short; and an answer of more than L − B tokens loses overlong_penalty·min(1, (tokens − (L − B)) /
    B), L = max_response_length and B = overlong_buffer, which is the part `overlong` of the reward. Run by verl's
    synchronous PPO trainer.

    Not for a model that solves nearly all or nearly no prompts: hardly a prompt is left, and a step that finds too few
    within max_generation_batches fails the run. `reward/mean` is that of the prompts that were kept; all that was
    sampled is `rollout/reward/mean`.
    """

    Params = DapoParams
    dataset_formats: ClassVar[tuple[str, ...]] = DATASET_FORMATS
    validation_formats: ClassVar[tuple[str, ...]] = VALIDATION_FORMATS
    needs_reward: ClassVar[bool] = True
    headline_metrics: ClassVar[tuple[Headline, ...]] = (
        # Of all that was sampled: the mean of the prompts that are kept says little.
        Headline("rollout/reward/mean", "reward"),
        *headline.POLICY[1:],
    )

    @staticmethod
    def check(params: DapoParams, facts: JobFacts) -> list[Violation]:
        return collect_violations(lambda: check_policy(params, facts), lambda: _check_buffer(params))

    @staticmethod
    def plan(params: DapoParams, inputs: PlanInputs) -> LaunchPlan:
        verl = {
            "algorithm.adv_estimator": "grpo",
            "algorithm.filter_groups.enable": params.dynamic_sampling,
            # As the reward gave it, before the penalty: the paper asks for accuracy (equation 11).
            "algorithm.filter_groups.metric": "score",
            # Kept by our trainer: verl's own goes on for ever.
            "algorithm.filter_groups.max_num_gen_batches": params.max_generation_batches,
            **_overlong(params),
        }
        return policy_plan("dapo", params, inputs, verl)


def _check_buffer(params: DapoParams) -> list[Violation]:
    if params.overlong_buffer is None or params.overlong_buffer <= params.response_tokens:
        return []
    return [Violation("overlong_buffer", f"must be at most max_response_length ({params.response_tokens})")]


def _overlong(params: DapoParams) -> dict[str, Any]:
    """verl's settings of its DAPO reward manager; our own generation reads the same ones."""
    if params.overlong_penalty == 0:
        return {}
    return {
        "reward.reward_manager.name": "dapo",
        "reward.reward_kwargs.max_resp_len": params.response_tokens,
        "reward.reward_kwargs.overlong_buffer_cfg": {
            "enable": True,
            "len": params.overlong_buffer or max(1, params.response_tokens // 5),
            "penalty_factor": params.overlong_penalty,
            "log": True,
        },
    }
