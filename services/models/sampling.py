"""Batched sampling from a causal language model, with the log-probability of every token under the distribution it was
drawn from.

B rows, T tokens of the padded prompts, V the vocabulary. Before the first token a row is a prompt, then a request.
"""
# ruff: noqa: N803, N806  (axes stand in names)

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Request:
    """`temperature` 0 takes the likeliest token; `top_k` 0 and `top_p` 1 leave the distribution as it is."""

    prompt: tuple[int, ...]
    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0


@dataclass(frozen=True)
class Completion:
    """`tokens` include the end token where the model gave one; `logprobs` has one entry per token."""

    tokens: list[int]
    logprobs: list[float]
    ended: bool


def check(request: Request, context_length: int | None) -> None:
    """Raises ValueError for what can't be answered."""
    if not request.prompt:
        raise ValueError("the prompt has no tokens")
    if request.max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1 (got {request.max_new_tokens})")
    if not (request.temperature >= 0 and math.isfinite(request.temperature)):
        raise ValueError(f"temperature must be at least 0 (got {request.temperature})")
    if not 0 < request.top_p <= 1:
        raise ValueError(f"top_p must be in (0, 1] (got {request.top_p})")
    if context_length is not None and len(request.prompt) + request.max_new_tokens > context_length:
        total = len(request.prompt) + request.max_new_tokens
        raise ValueError(
            f"prompt and answer may take {total} tokens, more than the model's context of {context_length}"
        )


@torch.inference_mode()
def sample(
    model: torch.nn.Module,
    requests: Sequence[Request],
    end_tokens: frozenset[int],
    pad_token: int,
    generator: torch.Generator | None = None,
) -> list[Completion]:
    """Answer all requests together: left-padded, one forward pass a token, rows leave the batch as they end. A prompt
    that several requests share is read once.
    """
    batch = _Batch(model, requests, end_tokens, pad_token, generator)
    while batch.rows:
        batch.step()
    return [
        Completion(tokens, logprobs, bool(tokens) and tokens[-1] in end_tokens)
        for tokens, logprobs in zip(batch.tokens, batch.logprobs, strict=True)
    ]


class _Batch:
    """The rows that are still going. `rows[b]` is the request that row b of every tensor belongs to."""

    def __init__(
        self,
        model: torch.nn.Module,
        requests: Sequence[Request],
        end_tokens: frozenset[int],
        pad_token: int,
        generator: torch.Generator | None,
    ) -> None:
        self.model, self.requests, self.end_tokens, self.generator = model, requests, end_tokens, generator
        self.rows = list(range(len(requests)))
        self.tokens: list[list[int]] = [[] for _ in requests]
        self.logprobs: list[list[float]] = [[] for _ in requests]
        device = next(model.parameters()).device
        # Answers to one prompt differ only after it: P prompts are read, and row b goes on from prompt shared_B[b].
        places = {prompt: place for place, prompt in enumerate(dict.fromkeys(one.prompt for one in requests))}
        self.shared_B = torch.tensor([places[request.prompt] for request in requests], device=device)
        width = max(map(len, places), default=0)
        self.input_B_T = torch.full((len(places), width), pad_token, device=device)
        self.mask_B_T = torch.zeros((len(places), width), dtype=torch.long, device=device)
        for prompt, place in places.items():
            self.input_B_T[place, width - len(prompt) :] = torch.tensor(prompt)
            self.mask_B_T[place, width - len(prompt) :] = 1
        # Padding has position 0 and mask 0: it is never attended to.
        self.position_B_T = (self.mask_B_T.cumsum(-1) - 1).clamp(min=0)
        self.temperature_B = torch.tensor([request.temperature for request in requests], device=device)
        self.top_p_B = torch.tensor([request.top_p for request in requests], device=device)
        self.top_k_B = torch.tensor([request.top_k for request in requests], device=device)
        self.cache: Any = None

    def step(self) -> None:
        """One token for every row; the first step reads the prompts."""
        first = self.cache is None
        output = self.model(
            input_ids=self.input_B_T,
            attention_mask=self.mask_B_T,
            position_ids=self.position_B_T,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.cache = output.past_key_values
        logit_B_V = output.logits[:, -1].float()
        if first:
            self._spread()
            logit_B_V = logit_B_V[self.shared_B]
        logprob_B_V = distribution(logit_B_V, self.temperature_B, self.top_p_B, self.top_k_B)
        # With temperature 0 all mass lies on one token, so drawing takes it.
        token_B = torch.multinomial(logprob_B_V.exp(), 1, generator=self.generator)
        kept = self._take(token_B.squeeze(1).tolist(), logprob_B_V.gather(1, token_B).squeeze(1).tolist())
        self.input_B_T = token_B
        self.position_B_T = self.position_B_T[:, -1:] + 1
        self.mask_B_T = torch.cat([self.mask_B_T, self.mask_B_T.new_ones((len(self.rows), 1))], dim=1)
        if len(kept) < len(self.rows):
            self._keep(kept)

    def _spread(self) -> None:
        """From a row for each prompt to a row for each request."""
        if len(self.shared_B) == len(self.mask_B_T):
            return
        for name in ("mask_B_T", "position_B_T"):
            setattr(self, name, getattr(self, name)[self.shared_B])
        self.cache.batch_select_indices(self.shared_B)

    def _take(self, tokens: list[int], logprobs: list[float]) -> list[int]:
        """Give each row its token; the batch rows that go on."""
        going_on = []
        for position, (row, token, logprob) in enumerate(zip(self.rows, tokens, logprobs, strict=True)):
            self.tokens[row].append(token)
            self.logprobs[row].append(logprob)
            if token not in self.end_tokens and len(self.tokens[row]) < self.requests[row].max_new_tokens:
                going_on.append(position)
        return going_on

    def _keep(self, kept: list[int]) -> None:
        self.rows = [self.rows[position] for position in kept]
        if not kept:
            return
        index = torch.tensor(kept, device=self.mask_B_T.device)
        for name in ("input_B_T", "mask_B_T", "position_B_T", "temperature_B", "top_p_B", "top_k_B"):
            setattr(self, name, getattr(self, name)[index])
        self.cache.batch_select_indices(index)


def distribution(logits_B_V: Tensor, temperature_B: Tensor, top_p_B: Tensor, top_k_B: Tensor) -> Tensor:
    """Log-probabilities that a token is drawn from: temperature, then top-k, then top-p (Holtzman et al. 2019), each
    followed by normalisation. A temperature of 0 leaves the likeliest token alone.
    """
    greedy_B = temperature_B == 0
    logprob_B_V = (logits_B_V / torch.where(greedy_B, 1.0, temperature_B)[:, None]).log_softmax(-1)
    if greedy_B.any():
        best = torch.full_like(logprob_B_V, -torch.inf).scatter(1, logits_B_V.argmax(-1, keepdim=True), 0.0)
        logprob_B_V = torch.where(greedy_B[:, None], best, logprob_B_V)
    if not (top_k_B > 0).any() and bool((top_p_B >= 1).all()):
        return logprob_B_V
    sorted_B_V, order_B_V = logprob_B_V.sort(-1, descending=True)
    rank_V = torch.arange(logits_B_V.shape[-1], device=logits_B_V.device)
    beyond_k = (top_k_B[:, None] > 0) & (rank_V[None] >= top_k_B[:, None])
    sorted_B_V = sorted_B_V.masked_fill(beyond_k, -torch.inf).log_softmax(-1)
    probability_B_V = sorted_B_V.exp()
    # A token stays while the mass before it is below top_p, so the first always does.
    beyond_p = (probability_B_V.cumsum(-1) - probability_B_V >= top_p_B[:, None]) & (rank_V[None] > 0)
    beyond_p &= top_p_B[:, None] < 1
    sorted_B_V = sorted_B_V.masked_fill(beyond_p, -torch.inf).log_softmax(-1)
    return torch.full_like(sorted_B_V, -torch.inf).scatter(1, order_B_V, sorted_B_V)
