"""REINFORCE leave-one-out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from services.mesh.errors import Violation
from services.trainer.algorithms import algorithms, headline
from services.trainer.algorithms.headline import Headline
from services.trainer.algorithms.policy_gradient import (
    DATASET_FORMATS,
    Group,
    GroupParams,
    KlCoefficient,
    KlIn,
    KlKind,
    LossAggregation,
    policy_plan,
)
from services.trainer.algorithms.policy_gradient_validators import check_policy
from services.trainer.algorithms.validators import VALIDATION_FORMATS
from services.trainer.training.launch_plan import JobFacts, LaunchPlan, PlanInputs


@dataclass(frozen=True)
class RlooParams(GroupParams):
    samples_per_prompt: Group = 4
    kl_coefficient: KlCoefficient = 0.03
    kl_kind: KlKind = "kl"
    kl_in: KlIn = "reward"
    # An answer is one action: its log-probability is the sum over its tokens.
    loss_aggregation: LossAggregation = "seq-mean-token-sum"


@algorithms.register("rloo")
class Rloo:
    """REINFORCE leave-one-out: each answer is judged against the mean reward of the prompt's other answers.

    With R = r − β·log(π(y|x) / π_ref(y|x)), the advantage of answer i of k is R_i − mean of R_j over j ≠ i, which is an
    unbiased baseline; the policy maximises advantage times log π(y|x), the whole answer being one action (Ahmadian et
    al. 2024, arXiv:2402.14740). With one update a step, which is the default, PPO's clipped ratio has this gradient.
    Run by verl's synchronous PPO trainer.

    Not for many updates a step, where it becomes PPO with a noisier baseline; nor for answers of very different
    lengths, whose summed losses and gradients differ as much.
    """

    Params = RlooParams
    dataset_formats: ClassVar[tuple[str, ...]] = DATASET_FORMATS
    validation_formats: ClassVar[tuple[str, ...]] = VALIDATION_FORMATS
    needs_reward: ClassVar[bool] = True
    headline_metrics: ClassVar[tuple[Headline, ...]] = headline.POLICY

    @staticmethod
    def check(params: RlooParams, facts: JobFacts) -> list[Violation]:
        return check_policy(params, facts)

    @staticmethod
    def plan(params: RlooParams, inputs: PlanInputs) -> LaunchPlan:
        return policy_plan("rloo", params, inputs, {"algorithm.adv_estimator": "rloo"})
