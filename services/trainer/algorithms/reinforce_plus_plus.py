"""REINFORCE++."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from services.mesh.errors import Violation
from services.mesh.validation.partial import collect_violations
from services.trainer.algorithms import algorithms, headline
from services.trainer.algorithms.headline import Headline
from services.trainer.algorithms.policy_gradient import (
    DATASET_FORMATS,
    Answers,
    KlCoefficient,
    KlIn,
    KlKind,
    PolicyParams,
    policy_plan,
)
from services.trainer.algorithms.policy_gradient_validators import check_policy, check_whitened
from services.trainer.algorithms.validators import VALIDATION_FORMATS
from services.trainer.training.launch_plan import JobFacts, LaunchPlan, PlanInputs


@dataclass(frozen=True)
class ReinforcePlusPlusParams(PolicyParams):
    samples_per_prompt: Answers = 1
    group_baseline: Annotated[
        bool, Field(description="subtract the mean reward of a prompt's answers first: REINFORCE++-baseline")
    ] = False
    gamma: Annotated[float, Field(gt=0, le=1, description="discount a token; without group_baseline only")] = 1.0
    kl_coefficient: KlCoefficient = 0.01
    kl_kind: KlKind = "kl"
    kl_in: KlIn = "reward"


@algorithms.register("reinforce_plus_plus")
class ReinforcePlusPlus:
    """REINFORCE++: no critic and no groups; advantages are normalised over all tokens of a step.

    A token's reward is −β·log(π/π_ref), plus r at the last; its return is the sum Σ γ^k of the rewards from it on, and
    its advantage (return − mean) / std over all tokens of the step's answers; the policy maximises PPO's clipped
    objective (Hu et al. 2025, arXiv:2501.03262). With `group_baseline` the mean reward of the prompt's answers is
    subtracted first (its REINFORCE++-baseline). Run by verl's synchronous PPO trainer.

    Not for small steps, whose mean and deviation say little; without `group_baseline` nor for prompts of very unequal
    difficulty: an easy prompt's answers are all pushed up.
    """

    Params = ReinforcePlusPlusParams
    dataset_formats: ClassVar[tuple[str, ...]] = DATASET_FORMATS
    validation_formats: ClassVar[tuple[str, ...]] = VALIDATION_FORMATS
    needs_reward: ClassVar[bool] = True
    headline_metrics: ClassVar[tuple[Headline, ...]] = headline.POLICY

    @staticmethod
    def check(params: ReinforcePlusPlusParams, facts: JobFacts) -> list[Violation]:
        return collect_violations(
            lambda: check_policy(params, facts),
            lambda: check_whitened(params),
            lambda: _check_group(params),
            lambda: _check_discount(params),
        )

    @staticmethod
    def plan(params: ReinforcePlusPlusParams, inputs: PlanInputs) -> LaunchPlan:
        estimator = "reinforce_plus_plus_baseline" if params.group_baseline else "reinforce_plus_plus"
        verl = {"algorithm.adv_estimator": estimator, "algorithm.gamma": params.gamma}
        return policy_plan("reinforce_plus_plus", params, inputs, verl)


def _check_group(params: ReinforcePlusPlusParams) -> list[Violation]:
    if not params.group_baseline or params.samples_per_prompt > 1:
        return []
    return [Violation("samples_per_prompt", "must be at least 2 with group_baseline")]


def _check_discount(params: ReinforcePlusPlusParams) -> list[Violation]:
    if not params.group_baseline or params.gamma == 1:
        return []
    return [Violation("gamma", "must be 1 with group_baseline, which judges whole answers")]
