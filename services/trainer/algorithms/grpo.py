"""Group relative policy optimisation."""

from __future__ import annotations

from typing import ClassVar

from services.mesh.errors import Violation
from services.trainer.algorithms import algorithms, headline
from services.trainer.algorithms.headline import Headline
from services.trainer.algorithms.policy_gradient import DATASET_FORMATS, GroupParams, policy_plan
from services.trainer.algorithms.policy_gradient_validators import check_policy
from services.trainer.algorithms.validators import VALIDATION_FORMATS
from services.trainer.training.launch_plan import JobFacts, LaunchPlan, PlanInputs


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

    Params = GroupParams
    dataset_formats: ClassVar[tuple[str, ...]] = DATASET_FORMATS
    validation_formats: ClassVar[tuple[str, ...]] = VALIDATION_FORMATS
    needs_reward: ClassVar[bool] = True
    headline_metrics: ClassVar[tuple[Headline, ...]] = headline.POLICY

    @staticmethod
    def check(params: GroupParams, facts: JobFacts) -> list[Violation]:
        return check_policy(params, facts)

    @staticmethod
    def plan(params: GroupParams, inputs: PlanInputs) -> LaunchPlan:
        return policy_plan("grpo", params, inputs, {"algorithm.adv_estimator": "grpo"})
