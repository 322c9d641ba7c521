"""Log-probabilities of tokens from logits, and their gradient, in a few large steps.

Without flash-attn verl loops over the tokens in Python.
"""
# ruff: noqa: N803, N806  (axes stand in names)

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Logits that are looked at together: 256 MiB of fp32.
CHUNK_ELEMENTS = 1 << 26


def token_logprobs(logits: Tensor, labels: Tensor) -> Tensor:
    """log softmax(logits)[label] for logits (…, V) and labels (…), in fp32 whatever the logits are."""
    flat_N_V, label_N = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)
    return _TokenLogprobs.apply(flat_N_V, label_N).view(labels.shape)  # type: ignore[no-any-return]


class _TokenLogprobs(torch.autograd.Function):
    """Keeps the logits as they are and one number a token; the softmax is made again, chunk by chunk, for the gradient:
    ∂ log p(label) / ∂ logit_v = [v = label] − p(v)."""

    @staticmethod
    def forward(ctx: Any, logits_N_V: Tensor, label_N: Tensor) -> Tensor:
        sums = [chunk.float().logsumexp(-1) for chunk in logits_N_V.split(_rows(logits_N_V))]
        sum_N = torch.cat(sums) if sums else logits_N_V.new_zeros(0, dtype=torch.float32)
        ctx.save_for_backward(logits_N_V, label_N, sum_N)
        return logits_N_V.gather(-1, label_N[:, None]).squeeze(-1).float() - sum_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        logits_N_V, label_N, sum_N = ctx.saved_tensors
        gradient_N = gradients[0]
        gradient_N_V = torch.empty_like(logits_N_V)
        size = _rows(logits_N_V)
        for start in range(0, len(label_N), size):
            rows = slice(start, start + size)
            probability = (logits_N_V[rows].float() - sum_N[rows, None]).exp_()
            chunk = probability.mul_(-gradient_N[rows, None])
            chunk.scatter_add_(-1, label_N[rows, None], gradient_N[rows, None].to(chunk.dtype))
            gradient_N_V[rows] = chunk.to(gradient_N_V.dtype)
        return gradient_N_V, None


def _rows(logits_N_V: Tensor) -> int:
    return max(1, CHUNK_ELEMENTS // max(1, logits_N_V.shape[-1]))
