"""Direct preference optimisation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from services.mesh.errors import Violation
from services.mesh.validation.partial import collect_violations
from services.trainer.algorithms import algorithms, headline
from services.trainer.algorithms.common_params import TrainingParams
from services.trainer.algorithms.headline import Headline
from services.trainer.algorithms.preference import DATASET_FORMATS, PairParams, check_pairs, pair_overrides, pair_steps
from services.trainer.algorithms.validation_series import ACCURACY, LOSS, MARGIN
from services.trainer.algorithms.validators import VALIDATION_FORMATS
from services.trainer.algorithms.verl_config import validation_plan
from services.trainer.training.launch_plan import JobFacts, LaunchPlan, PlanInputs
from services.trainer.training.tasks import DpoLoss, DpoTask

# SimPO's rewards are means over tokens where the others' are sums, so its beta is larger (its paper's section 4).
BETA = {"sigmoid": 0.1, "ipo": 0.1, "hinge": 0.1, "simpo": 2.0}
GAMMA = 1.0


@dataclass(frozen=True)
class DpoParams(PairParams, TrainingParams):
    held_out: ClassVar[Mapping[str, tuple[str, ...]]] = {"preference": (LOSS, ACCURACY, MARGIN)}
    learning_rate: Annotated[float, Field(gt=0, le=1, description="peak of AdamW's rate; LoRA wants ten times")] = 1e-6
    loss_type: Annotated[
        Literal["sigmoid", "ipo", "hinge", "simpo"], Field(description="simpo needs no reference model")
    ] = "sigmoid"
    beta: Annotated[
        float | None,
        Field(gt=0, le=100, description="how closely the reference is kept to; null takes 0.1, and 2 for simpo"),
    ] = None
    label_smoothing: Annotated[
        float, Field(ge=0, lt=0.5, description="how often labels are thought to be wrong; sigmoid only")
    ] = 0.0
    gamma: Annotated[
        float | None, Field(ge=0, le=100, description="margin that the reward must have; simpo only, null takes 1")
    ] = None


@algorithms.register("dpo")
class Dpo:
    """Direct preference optimisation: learn from pairs of a better and a worse answer, without a reward or sampling.

    With h = log π(y⁺|x)/π_ref(y⁺|x) − log π(y⁻|x)/π_ref(y⁻|x), log-probabilities summed over the answer's tokens, the
    mean over pairs is minimised of: `sigmoid` −log σ(β·h) (Rafailov et al. 2023, arXiv:2305.18290), with label
    smoothing ε −(1−ε)·log σ(β·h) − ε·log σ(−β·h); `hinge` max(0, 1 − β·h) (SLiC, Zhao et al. 2023, arXiv:2305.10425);
    `ipo` (h̄ − 1/(2β))², h̄ of means over tokens (Azar et al. 2023, arXiv:2310.12036); `simpo` −log σ(β·(mean log π(y⁺)
    − mean log π(y⁻)) − γ), no reference (Meng et al. 2024, arXiv:2405.14734). The reference is the model that training
    starts from. Run on verl's SFT trainer, with a loss of ours.

    Not for answers that the model would hardly give: fine-tune it on the better ones first. Not for many epochs: the
    probability of the better answers falls with that of the worse ones.
    """

    Params = DpoParams
    dataset_formats: ClassVar[tuple[str, ...]] = DATASET_FORMATS
    validation_formats: ClassVar[tuple[str, ...]] = (*VALIDATION_FORMATS, *DATASET_FORMATS)
    needs_reward: ClassVar[bool] = False
    headline_metrics: ClassVar[tuple[Headline, ...]] = (
        headline.LOSS,
        headline.PAIR_ACCURACY,
        headline.PAIR_MARGIN,
        headline.HELD_OUT_LOSS,
        headline.HELD_OUT_ACCURACY,
        headline.HELD_OUT_SCORE,
    )

    @staticmethod
    def check(params: DpoParams, facts: JobFacts) -> list[Violation]:
        return collect_violations(
            lambda: check_pairs(params, facts, Dpo.validation_formats),
            lambda: _check_smoothing(params),
            lambda: _check_gamma(params),
        )

    @staticmethod
    def plan(params: DpoParams, inputs: PlanInputs) -> LaunchPlan:
        loss = DpoLoss(
            kind=params.loss_type,
            beta=BETA[params.loss_type] if params.beta is None else params.beta,
            gamma=0.0 if params.loss_type != "simpo" else GAMMA if params.gamma is None else params.gamma,
            label_smoothing=params.label_smoothing,
        )
        return LaunchPlan(
            **inputs.common(),
            algorithm="dpo",
            validation=validation_plan(params.validation, params.reward, inputs),
            task=DpoTask(loss),
            verl=pair_overrides(params, inputs),
            adapter=params.lora is not None,
            max_tokens=params.row_tokens,
            total_steps=pair_steps(params, inputs),
            save_every_steps=params.save_every_steps or 0,
            seed=params.seed,
        )


def _check_smoothing(params: DpoParams) -> list[Violation]:
    if not params.label_smoothing or params.loss_type == "sigmoid":
        return []
    return [Violation("label_smoothing", f"must be 0 with loss_type {params.loss_type}: only sigmoid has it")]


def _check_gamma(params: DpoParams) -> list[Violation]:
    if params.gamma is None or params.loss_type == "simpo":
        return []
    return [Violation("gamma", f"must be null with loss_type {params.loss_type}: only simpo has a margin")]
