"""Training a reward model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from services.mesh.errors import Violation
from services.mesh.validation.params import STRICT_FIELDS
from services.mesh.validation.partial import collect_violations
from services.trainer.algorithms import algorithms, headline
from services.trainer.algorithms.headline import Headline
from services.trainer.algorithms.overrides import flat
from services.trainer.algorithms.preference import DATASET_FORMATS, PairParams, check_pairs, pair_overrides, pair_steps
from services.trainer.algorithms.validation_series import ACCURACY, LOSS, MARGIN
from services.trainer.training.launch_plan import JobFacts, LaunchPlan, PlanInputs
from services.trainer.training.tasks import PairValidationPlan, RewardModelLoss, RewardModelTask


@dataclass(frozen=True)
class PairValidationSettings:
    """How many held-out pairs are judged at every checkpoint."""

    __pydantic_config__ = STRICT_FIELDS
    rows: Annotated[int, Field(ge=1, le=100_000, description="pairs judged, from the first on")] = 256
    batch_size: Annotated[int, Field(ge=1, le=4096, description="pairs judged together")] = 16


DEFAULT_PAIR_VALIDATION = PairValidationSettings()


@dataclass(frozen=True)
class RewardModelParams(PairParams):
    held_out: ClassVar[Mapping[str, tuple[str, ...]]] = {"preference": (ACCURACY, MARGIN, LOSS)}
    margin: Annotated[
        float, Field(ge=0, le=100, description="by how much the better answer's score must be higher")
    ] = 0.0
    centre_coefficient: Annotated[
        float, Field(ge=0, le=10, description="weight of (sum of the scores)²; 0.01 keeps them around 0")
    ] = 0.0
    validation: PairValidationSettings = DEFAULT_PAIR_VALIDATION


FUSED = "model.use_fused_kernels"


@algorithms.register("reward_model")
class RewardModel:
    """Reward model: learn from pairs what a better answer is, as a score of a whole conversation.

    The language model gets one linear layer instead of its vocabulary's, whose output at the conversation's last token
    is the score r. Minimised is the mean over pairs of −log σ(r⁺ − r⁻ − margin) + centre_coefficient·(r⁺ + r⁻)²: the
    model of Bradley and Terry 1952 as in Ouyang et al. 2022 (section 3.5, arXiv:2203.02155), and the second term of
    Eisenstein et al. 2023 (arXiv:2312.09244). Run on verl's SFT trainer, with an engine and a loss of ours. Its
    checkpoints are of kind reward: transformers' AutoModelForSequenceClassification loads them; adapters are merged.

    Not where an answer can be checked: a rule can't be deceived, a reward model can. Nor for a handful of pairs.
    """

    Params = RewardModelParams
    dataset_formats: ClassVar[tuple[str, ...]] = DATASET_FORMATS
    validation_formats: ClassVar[tuple[str, ...]] = DATASET_FORMATS
    needs_reward: ClassVar[bool] = False
    headline_metrics: ClassVar[tuple[Headline, ...]] = (
        headline.LOSS,
        headline.PAIR_ACCURACY,
        headline.HELD_OUT_ACCURACY,
        headline.HELD_OUT_LOSS,
    )

    @staticmethod
    def check(params: RewardModelParams, facts: JobFacts) -> list[Violation]:
        return collect_violations(
            lambda: check_pairs(params, facts, RewardModel.validation_formats, logits=False),
            lambda: _check_sequence_parallel(params),
            lambda: _check_fused(params),
        )

    @staticmethod
    def plan(params: RewardModelParams, inputs: PlanInputs) -> LaunchPlan:
        rows = min(params.validation.rows, inputs.validation_rows) if inputs.validation_path else 0
        validation = PairValidationPlan(rows, params.validation.batch_size, params.row_tokens) if rows else None
        return LaunchPlan(
            **inputs.common(),
            algorithm="reward_model",
            validation=None,
            task=RewardModelTask(RewardModelLoss(params.margin, params.centre_coefficient), validation),
            verl={
                **pair_overrides(params, inputs),
                # verl's exporter knows no sequence classifiers; our engine writes its own.
                "checkpoint.save_contents": ["model", "optimizer", "extra"],
            },
            # Merged.
            adapter=False,
            max_tokens=params.row_tokens,
            total_steps=pair_steps(params, inputs),
            save_every_steps=params.save_every_steps or 0,
            seed=params.seed,
        )


def _check_sequence_parallel(params: RewardModelParams) -> list[Violation]:
    if params.sequence_parallel == 1:
        return []
    return [Violation("sequence_parallel", "must be 1: a score is had at one place of the whole sequence")]


def _check_fused(params: RewardModelParams) -> list[Violation]:
    if not dict(flat(params.verl_overrides)).get(FUSED):
        return []
    return [Violation(f"verl_overrides.{FUSED}", "must be false: there is no vocabulary to fuse")]
