"""Supervised fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from services.mesh.errors import Violation
from services.mesh.validation.partial import collect_violations
from services.trainer.algorithms import algorithms, headline
from services.trainer.algorithms.common_params import RowParams, TrainingParams
from services.trainer.algorithms.headline import Headline
from services.trainer.algorithms.memory import ForwardPass
from services.trainer.algorithms.overrides import applied
from services.trainer.algorithms.validation_series import LOSS, PERPLEXITY
from services.trainer.algorithms.validators import (
    VALIDATION_FORMATS,
    check_common,
    check_divides,
    check_length,
    check_memory,
    check_share,
)
from services.trainer.algorithms.verl_config import (
    engine_overrides,
    model_overrides,
    optimizer_overrides,
    rows_a_pass,
    total_steps,
    validation_plan,
)
from services.trainer.training.launch_plan import JobFacts, LaunchPlan, PlanInputs
from services.trainer.training.tasks import SftTask


@dataclass(frozen=True)
class SftParams(RowParams, TrainingParams):
    held_out: ClassVar[Mapping[str, tuple[str, ...]]] = {"messages": (LOSS, PERPLEXITY)}
    batch_size: Annotated[int, Field(ge=1, le=65_536, description="rows a step")] = 64
    micro_batch_size: Annotated[
        int | None, Field(ge=1, description="rows a forward pass on one slot; null chooses")
    ] = None


@algorithms.register("sft")
class Sft:
    """Supervised fine-tuning: imitate the assistant's turns of conversations.

    Minimises the mean negative log-likelihood of the tokens of assistant turns, −(1/N) Σ log π(token | what came
    before); every other token is context and carries no loss (Ouyang et al. 2022, section 3.5, arXiv:2203.02155).
    Run by verl's SFT trainer.

    Not for rows whose answers are wrong or of mixed quality: they are imitated all the same (use preferences or a
    reward), nor for teaching facts in a few epochs.
    """

    Params = SftParams
    dataset_formats: ClassVar[tuple[str, ...]] = ("messages",)
    validation_formats: ClassVar[tuple[str, ...]] = VALIDATION_FORMATS
    needs_reward: ClassVar[bool] = False
    headline_metrics: ClassVar[tuple[Headline, ...]] = (headline.LOSS, headline.HELD_OUT_LOSS, headline.HELD_OUT_SCORE)

    @staticmethod
    def check(params: SftParams, facts: JobFacts) -> list[Violation]:
        rows = "the rows of one slot"
        return collect_violations(
            lambda: check_common(params, Sft.dataset_formats, facts, "batch_size"),
            lambda: check_divides("slots", facts.slots, params.batch_size, "batch_size"),
            lambda: check_share("micro_batch_size", params.micro_batch_size, params.batch_size, facts, rows),
            lambda: check_length("max_length", params.max_length, facts),
            lambda: check_memory(params, facts, ForwardPass(_rows_a_pass(params, facts), params.row_tokens)),
        )

    @staticmethod
    def plan(params: SftParams, inputs: PlanInputs) -> LaunchPlan:
        verl = {
            **model_overrides("model", params, inputs),
            **engine_overrides("engine", params, inputs.device),
            **optimizer_overrides("optim", params),
            "data.train_batch_size": params.batch_size,
            "data.micro_batch_size_per_gpu": _rows_a_pass(params, inputs),
            "data.use_dynamic_bsz": False,
            "data.max_length": params.row_tokens,
        }
        return LaunchPlan(
            **inputs.common(),
            algorithm="sft",
            validation=validation_plan(params.validation, params.reward, inputs),
            task=SftTask(),
            verl=applied(verl, params),
            adapter=params.lora is not None,
            max_tokens=params.row_tokens,
            total_steps=total_steps(params.steps, params.epochs, inputs.train_rows, params.batch_size),
            save_every_steps=params.save_every_steps or 0,
            seed=params.seed,
        )


def _rows_a_pass(params: SftParams, where: JobFacts | PlanInputs) -> int:
    return params.micro_batch_size or rows_a_pass(params.batch_size // where.slots, where.device, 64)
