"""Preference rows as what a trainer of pairs reads: each side as tokens, with a mask over the answer's."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from services.trainer.verl.datasets import CACHED_ROWS, read_rows, select, within

Messages = list[dict[str, str]]


class PairRows(Dataset):
    """Pairs of which neither side is longer than `max_tokens`. `references` is filled in by who trains with one."""

    def __init__(self, path: Path, tokenizer: Any, max_tokens: int, report: Callable[[int, int], None]) -> None:
        rows = read_rows(path)
        sides = [
            within(tokenizer, [{"messages": row["prompt"] + row[side]} for row in rows], "messages", False, max_tokens)
            for side in ("chosen", "rejected")
        ]
        kept = sorted(set(sides[0]) & set(sides[1]))
        select(rows, kept, max_tokens, report)
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


def encode(tokenizer: Any, prompt: Messages, completion: Messages) -> tuple[list[int], list[int]]:
    """Tokens of the whole conversation, and 1 for those that the completion's assistant turns are made of, their end
    included: what the template adds from a turn's opening to the turn's end.

    Raises ValueError where the template renders a conversation's beginning otherwise than the conversation.
    """
    messages = prompt + completion
    tokens = _render(tokenizer, messages, False)
    mask = [0] * len(tokens)
    for turn in range(len(prompt), len(messages)):
        if messages[turn]["role"] != "assistant":
            continue
        opening = _render(tokenizer, messages[:turn], True)
        last = turn == len(messages) - 1
        through = tokens if last else _render(tokenizer, messages[: turn + 1], False)
        if tokens[: len(opening)] != opening or tokens[: len(through)] != through:
            raise ValueError("the chat template renders the beginning of a conversation otherwise than the whole")
        mask[len(opening) : len(through)] = [1] * (len(through) - len(opening))
    return tokens, mask


def _render(tokenizer: Any, messages: Messages, opening: bool) -> list[int]:
    """With the tokens that open the assistant's turn where `opening`."""
    return tokenizer.apply_chat_template(messages, add_generation_prompt=opening, tokenize=True, return_dict=False)


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
