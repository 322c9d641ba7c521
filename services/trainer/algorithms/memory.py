"""What a job takes at least of a slot's memory. Pure.

With P parameters, S slots and AdamW in fp32, shared among the slots (FSDP2):

    update    16·P/S                                  weights, gradients, two moments
    backward  12·P/S + c·T·L·(4·H + 2·F) + 2·c·T·V    weights, moments, what layers keep, logits and their gradient

c are the bytes of the numbers that are computed with (2 in bf16, 4 in fp32), T the tokens of a forward pass, L the
layers, H and F their widths, V the vocabulary. With gradient checkpointing, or adapters, whose frozen layers keep
little, H stands for (4·H + 2·F); with adapters 4·P/S for 16·P/S and 12·P/S. The more of both counts, and beside it what
a policy algorithm has besides. It is a lower bound: T takes half the rows of a pass as the median row of the dataset,
at eight characters a token (English has some four); the other rows, padding, answers that are sampled, what kernels and
allocators need, gathered weights, saving and the side process are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from services.trainer.algorithms.common_params import RunParams
from services.trainer.algorithms.overrides import flat
from services.trainer.algorithms.verl_config import resolve_precision
from services.trainer.training.launch_plan import JobFacts

FLOAT = 4
CHARACTERS_A_TOKEN = 8


@dataclass(frozen=True)
class ForwardPass:
    """`rows` of the dataset on one slot, none longer than `longest` tokens. `logits`: it ends in the vocabulary."""

    rows: int
    longest: int
    logits: bool = True


@dataclass(frozen=True)
class Taken:
    """Bytes of one slot; `helps` are parameters that make them fewer."""

    what: str
    size: float
    helps: tuple[str, ...] = ()


def least(params: RunParams, facts: JobFacts, one: ForwardPass, beside: Sequence[Taken] = ()) -> list[Taken]:
    """By what takes it, where most is taken. `facts.model_parameters` must be known."""
    update = [_state(params, facts, 4 * FLOAT, "weights, gradients and moments"), *beside]
    backward = [_state(params, facts, 3 * FLOAT, "weights and moments"), *_kept(params, facts, one), *beside]
    return max(update, backward, key=total)


def total(taken: Sequence[Taken]) -> float:
    return sum(one.size for one in taken)


def width(params: RunParams, facts: JobFacts) -> int:
    """Bytes of a number that is computed with."""
    return FLOAT if resolve_precision(params.precision, facts.device) == "fp32" else FLOAT // 2


def _state(params: RunParams, facts: JobFacts, bytes_each: int, what: str) -> Taken:
    count = (facts.model_parameters or 0) / facts.slots
    if params.lora is not None:
        return Taken("weights", FLOAT * count)
    return Taken(what, bytes_each * count, ("lora",))


def _kept(params: RunParams, facts: JobFacts, one: ForwardPass) -> list[Taken]:
    """Between the passes forward and back."""
    shape, tokens = facts.shape, _tokens(params, facts, one)
    if shape is None or not tokens:
        return []
    sparing = params.gradient_checkpointing or params.lora is not None
    layer = shape.hidden if sparing else 4 * shape.hidden + 2 * shape.inner
    helps = () if one.rows == 1 else ("micro_batch_size",)
    layers = Taken(
        "what the layers keep",
        width(params, facts) * tokens * shape.layers * layer,
        helps if sparing else (*helps, "gradient_checkpointing"),
    )
    fused = any(name.endswith(".use_fused_kernels") and value for name, value in flat(params.verl_overrides))
    if not one.logits or fused:
        return [layers]
    return [layers, Taken("logits", 2 * width(params, facts) * tokens * shape.vocabulary, helps)]


def _tokens(params: RunParams, facts: JobFacts, one: ForwardPass) -> float:
    """Of a pass, at least; 0 where nobody knows. Half the rows of a step are as long as the median or longer."""
    median = (facts.median_characters or 0) / CHARACTERS_A_TOKEN
    dynamic = any(name.endswith(".use_dynamic_bsz") and value for name, value in flat(params.verl_overrides))
    # Where most rows are left out for their length the others may be short.
    if dynamic or median > one.longest:
        return 0
    return (one.rows + 1) // 2 * median / params.sequence_parallel
