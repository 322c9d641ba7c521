"""Group sequence policy optimisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from services.mesh.errors import Violation
from services.trainer.algorithms import algorithms, headline
from services.trainer.algorithms.headline import Headline
from services.trainer.algorithms.policy_gradient import (
    ACTOR,
    DATASET_FORMATS,
    ClipHigh,
    ClipLow,
    GroupParams,
    LossAggregation,
    policy_plan,
)
from services.trainer.algorithms.policy_gradient_validators import check_policy
from services.trainer.algorithms.validators import VALIDATION_FORMATS
from services.trainer.training.launch_plan import JobFacts, LaunchPlan, PlanInputs


@dataclass(frozen=True)
class GspoParams(GroupParams):
    """A step is four updates where `mini_batch_size` is null. `dual_clip` has no place in this loss."""

    # Of the paper's experiments (section 5.1).
    updates: ClassVar[int] = 4
    clip_low: ClipLow = 3e-4
    clip_high: ClipHigh = 4e-4
    loss_aggregation: LossAggregation = "seq-mean-token-mean"


@algorithms.register("gspo")
class Gspo:
    """Group sequence policy optimisation: GRPO whose ratio and clip belong to the whole answer, not to its tokens.

    For an answer y of |y| tokens the ratio is s = (π(y|x) / π_old(y|x))^(1/|y|), the geometric mean of its tokens'
    ratios; with the advantage A = (r − mean(r)) / (std(r) + ε) of its group the policy maximises the mean over answers
    of min(s·A, clip(s, 1 − low, 1 + high)·A) (Zheng et al. 2025, arXiv:2507.18071). s stays so near to 1 that the clip
    is a thousand times narrower than GRPO's. Run by verl's synchronous PPO trainer.

    Not for a step of one update (`mini_batch_size` = `prompts_per_step`, one pass): s is then 1 and it is GRPO averaged
    by answers; nor for rewards that single tokens earn.
    """

    Params = GspoParams
    dataset_formats: ClassVar[tuple[str, ...]] = DATASET_FORMATS
    validation_formats: ClassVar[tuple[str, ...]] = VALIDATION_FORMATS
    needs_reward: ClassVar[bool] = True
    headline_metrics: ClassVar[tuple[Headline, ...]] = headline.POLICY

    @staticmethod
    def check(params: GspoParams, facts: JobFacts) -> list[Violation]:
        return check_policy(params, facts)

    @staticmethod
    def plan(params: GspoParams, inputs: PlanInputs) -> LaunchPlan:
        verl = {"algorithm.adv_estimator": "grpo", f"{ACTOR}.policy_loss.loss_mode": "gspo"}
        return policy_plan("gspo", params, inputs, verl)
