"""GRPO done right: without the two biases of its normalisations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from services.mesh.errors import Violation
from services.trainer.algorithms import algorithms, headline
from services.trainer.algorithms.headline import Headline
from services.trainer.algorithms.policy_gradient import (
    DATASET_FORMATS,
    NORMALISED,
    GroupParams,
    LossAggregation,
    policy_plan,
)
from services.trainer.algorithms.policy_gradient_validators import check_policy
from services.trainer.algorithms.validators import VALIDATION_FORMATS
from services.trainer.training.launch_plan import JobFacts, LaunchPlan, PlanInputs


@dataclass(frozen=True)
class DrGrpoParams(GroupParams):
    loss_aggregation: LossAggregation = NORMALISED


@algorithms.register("dr_grpo")
class DrGrpo:
    """GRPO done right: advantages without a standard deviation, losses without the answer's length.

    An answer's advantage is r − mean(r) of its group; the clipped losses of its tokens are summed and divided by the
    constant max_response_length, then averaged over answers (Liu et al. 2025, arXiv:2503.20783). GRPO's division by
    std(r) weighs prompts that are nearly always or nearly never solved more, and its division by the answer's length
    makes wrong answers long. Run by verl's synchronous PPO trainer.

    Not for rewards whose scale differs between prompts, which GRPO's standard deviation evens out; nor where
    max_response_length is far above the answers' lengths: the losses, and `actor/entropy` with them, shrink alike.
    """

    Params = DrGrpoParams
    dataset_formats: ClassVar[tuple[str, ...]] = DATASET_FORMATS
    validation_formats: ClassVar[tuple[str, ...]] = VALIDATION_FORMATS
    needs_reward: ClassVar[bool] = True
    headline_metrics: ClassVar[tuple[Headline, ...]] = headline.POLICY

    @staticmethod
    def check(params: DrGrpoParams, facts: JobFacts) -> list[Violation]:
        return check_policy(params, facts)

    @staticmethod
    def plan(params: DrGrpoParams, inputs: PlanInputs) -> LaunchPlan:
        verl = {"algorithm.adv_estimator": "grpo", "algorithm.norm_adv_by_std_in_grpo": False}
        return policy_plan("dr_grpo", params, inputs, verl)
