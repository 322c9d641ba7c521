"""A few numbers by which two copies of a model are told apart: log-probabilities, or a reward model's score.

A fixed row of T tokens goes through the model; of each position the log-probabilities of K fixed tokens are kept. Each
depends on every weight that takes part in it: all of the blocks, and by the normaliser all of the output layer; not on
embeddings of tokens that are not in the row, nor on experts that none of them is sent to.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from torch import Tensor

PROBE_FILE = "probe.json"
TOKENS, SHOWN = 16, 8
# Larger differences than rounding makes, of one kernel and another that both compute in this type from the same weights
# in it. Weights of something else differ by as much as their logits vary: by 1 and more.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.5, "float16": 0.1}
_STRIDE, _SHOWN_STRIDE = 7919, 104_729


class AdapterSums(msgspec.Struct, frozen=True):
    """Of an adapter's tensors, named `<layer>.lora_A` and `<layer>.lora_B`, and the scales of its layers, each named
    once; see adapter_sums.py."""

    tensors: dict[str, list[float]]
    scales: list[float]


class Probe(msgspec.Struct, frozen=True):
    """`dtype` is what was computed in; `logprobs` has T rows of K, or the one score of a reward model."""

    dtype: str
    logprobs: list[list[float]]
    adapter: AdapterSums | None = None


def probe_tokens(vocabulary_size: int, context_length: int | None) -> list[int]:
    """T tokens spread over the vocabulary."""
    return [_STRIDE * position % vocabulary_size for position in range(1, min(TOKENS, context_length or TOKENS) + 1)]


def logprobs(logits_T_V: Tensor) -> list[list[float]]:  # noqa: N803  (axes stand in names)
    """The log-probabilities of the K tokens at each of T positions."""
    vocabulary_size = logits_T_V.shape[-1]
    chosen = [_SHOWN_STRIDE * place % vocabulary_size for place in range(1, SHOWN + 1)]
    return logits_T_V.float().log_softmax(-1)[:, chosen].cpu().tolist()


def shown(logits: Tensor) -> list[list[float]]:
    """Of one row: of a language model's logits (1, T, V), or of the output of a classifier (1, 1)."""
    return logprobs(logits[0]) if logits.dim() == 3 else logits.float().cpu().tolist()


def ask(model: Any) -> list[list[float]]:
    """Of a transformers model that is in eval mode."""
    import torch

    tokens = probe_tokens(model.config.vocab_size, getattr(model.config, "max_position_embeddings", None))
    with torch.inference_mode():
        return shown(model(input_ids=torch.tensor([tokens]), use_cache=False).logits)


def difference(one: list[list[float]], other: list[list[float]], dtype: str = "float32") -> float:
    """The largest; infinite where they are of another shape or not numbers.

    Of shorter types than fp32 the mean: in bf16 24 layers put single log-probabilities of unlikely tokens 0.4 off, and
    their mean 0.1.
    """
    if [len(row) for row in one] != [len(row) for row in other]:
        return math.inf
    pairs = [(a, b) for left, right in zip(one, other, strict=True) for a, b in zip(left, right, strict=True)]
    found = [abs(a - b) for a, b in pairs]
    if not found or not all(map(math.isfinite, found)):
        return math.inf
    return max(found) if dtype == "float32" else sum(found) / len(found)
