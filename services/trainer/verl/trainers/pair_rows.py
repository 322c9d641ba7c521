"""Preference rows as what a trainer of pairs reads: each side as tokens, with a mask over the answer's."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from services.models.chat_template import trained_tokens, trained_turns
from services.trainer.verl.trainers.datasets import (
    CACHED_ROWS,
    Fitting,
    Warn,
    ignore_warning,
    read_rows,
    warn_of_thoughts,
    within,
)

Messages = list[dict[str, str]]


class PairRows(Dataset):
    """Pairs of which neither side is longer than `max_tokens`. `references` is filled in by who trains with one."""

    def __init__(
        self, path: Path, tokenizer: Any, max_tokens: int, report: Callable[..., None], warn: Warn = ignore_warning
    ) -> None:
        rows = read_rows(path)
        warn_of_thoughts(tokenizer, [[*row["chosen"], *row["rejected"]] for row in rows], warn)
        chosen, rejected = (_side_within(tokenizer, rows, side, max_tokens) for side in ("chosen", "rejected"))
        kept = sorted(set(chosen.kept) & set(rejected.kept))
        fitting = Fitting(len(rows), kept, {**rejected.refused, **chosen.refused})
        fitting.report(max_tokens, report)
        self._rows = [rows[index] for index in kept]
        self._tokenizer = tokenizer
        self._encoded = lru_cache(maxsize=CACHED_ROWS)(self._encode)
        # Log-probability of chosen and rejected under the reference; 0 where there is none.
        self.references = torch.zeros(len(self._rows), 2)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, item: int) -> dict[str, Any]:
        return {"sides": self._encoded(item), "references": self.references[item]}

    def _encode(self, item: int) -> list[tuple[Tensor, Tensor]]:
        row = self._rows[item]
        sides = (encode(self._tokenizer, row["prompt"], row[side]) for side in ("chosen", "rejected"))
        return [(torch.tensor(tokens), torch.tensor(mask)) for tokens, mask in sides]


def _side_within(tokenizer: Any, rows: list[dict[str, Any]], side: str, max_tokens: int) -> Fitting:
    conversations = [row["prompt"] + row[side] for row in rows]
    turns = [trained_turns(one, len(row["prompt"])) for one, row in zip(conversations, rows, strict=True)]
    return within(tokenizer, conversations, False, max_tokens, turns)


def encode(tokenizer: Any, prompt: Messages, completion: Messages) -> tuple[list[int], list[int]]:
    """Tokens of the whole conversation, and 1 for those of the completion's assistant turns; see `trained_tokens`."""
    messages = prompt + completion
    return trained_tokens(tokenizer, messages, trained_turns(messages, len(prompt)))


def collate(pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """P pairs as 2P rows, chosen and rejected in turn: jagged tokens, and the reference's log-probability of each."""
    sides = [side for pair in pairs for side in pair["sides"]]
    return {
        "input_ids": _jagged([tokens for tokens, _ in sides]),
        "loss_mask": _jagged([mask for _, mask in sides]),
        "position_ids": _jagged([torch.arange(len(tokens)) for tokens, _ in sides]),
        "reference_logp": torch.cat([pair["references"] for pair in pairs]),
    }


def _jagged(rows: list[Tensor]) -> Tensor:
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)
