"""What the algorithms share that learn from pairs of a better and a worse answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from services.mesh.errors import Violation
from services.mesh.validation.partial import collect_violations
from services.trainer.algorithms.common_params import ROW_TOKENS, RowParams
from services.trainer.algorithms.memory import ForwardPass
from services.trainer.algorithms.overrides import applied
from services.trainer.algorithms.validators import check_common, check_divides, check_length, check_memory, check_share
from services.trainer.algorithms.verl_config import (
    engine_overrides,
    model_overrides,
    optimizer_overrides,
    rows_a_pass,
    total_steps,
)
from services.trainer.training.launch_plan import JobFacts, PlanInputs

DATASET_FORMATS = ("preference",)


@dataclass(frozen=True)
class PairParams(RowParams):
    """Sizes count pairs: both answers of one are in the same forward pass."""

    warmup_ratio: Annotated[float, Field(ge=0, le=0.5, description="share of steps with a rising rate")] = 0.1
    batch_size: Annotated[int, Field(ge=1, le=65_536, description="pairs a step")] = 64
    micro_batch_size: Annotated[
        int | None, Field(ge=1, description="pairs a forward pass on one slot; null chooses")
    ] = None
    max_length: Annotated[
        int | None,
        Field(
            ge=8,
            le=1_048_576,
            description="tokens of prompt and answer; pairs with a longer side are left out; null: what the model has,"
            f" at most {ROW_TOKENS}",
        ),
    ] = None


def check_pairs(
    params: PairParams, facts: JobFacts, validation_formats: tuple[str, ...], *, logits: bool = True
) -> list[Violation]:
    """`logits`: whether a forward pass ends in the vocabulary."""
    pairs = "the pairs of one slot"
    return collect_violations(
        lambda: check_common(params, DATASET_FORMATS, facts, "batch_size", validation_formats),
        lambda: check_divides("slots", facts.slots, params.batch_size, "batch_size"),
        lambda: check_share("micro_batch_size", params.micro_batch_size, params.batch_size, facts, pairs),
        lambda: check_length("max_length", params.max_length, facts),
        lambda: check_memory(params, facts, ForwardPass(_pairs_a_pass(params, facts), 2 * params.row_tokens, logits)),
    )


def pair_overrides(params: PairParams, inputs: PlanInputs) -> dict[str, Any]:
    """verl's settings. A pair is two rows, one after the other; what counts rows for verl is twice the pairs."""
    verl = {
        **model_overrides("model", params, inputs),
        **engine_overrides("engine", params, inputs.device),
        **optimizer_overrides("optim", params),
        # Our loader draws pairs.
        "data.train_batch_size": params.batch_size,
        # Rows: an even number from an even place on never splits a pair.
        "data.micro_batch_size_per_gpu": 2 * _pairs_a_pass(params, inputs),
        "data.use_dynamic_bsz": False,
        "data.max_length": params.row_tokens,
        # It would order rows by length.
        "trainer.balance_batch": False,
    }
    return applied(verl, params)


def _pairs_a_pass(params: PairParams, where: JobFacts | PlanInputs) -> int:
    return params.micro_batch_size or rows_a_pass(params.batch_size // where.slots, where.device, 32)


def pair_steps(params: PairParams, inputs: PlanInputs) -> int:
    return total_steps(params.steps, params.epochs, inputs.train_rows, params.batch_size)
