"""Canonical rows (JSON lines) as the datasets that verl's trainers want.

Rows that are too long, or that the chat template refuses, are left out here, before anything is trained, and counted,
so that a run neither truncates an answer silently nor fails in its middle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch.utils.data import Dataset

from services.models import chat_template
from services.trainer.training.data_forecast import NO_THOUGHTS, THOUGHTS_REMEDY

Warn = Callable[[str, str], None]
"""Takes a warning and its remedy."""

# Rows rendered together when lengths are taken.
RENDER_ROWS = 1000
# Tokenised rows kept in memory: small data sets are rendered once, large ones as they come.
CACHED_ROWS = 65_536


class NoRowsError(Exception):
    """No row is short enough to train on."""


class TooFewRowsError(Exception):
    """Fewer rows are short enough than a step takes."""

    def __init__(self, rows: int, step: int) -> None:
        super().__init__(f"{rows} rows are short enough, and a step takes {step}")


def read_rows(path: Path) -> list[dict[str, Any]]:
    decode = msgspec.json.Decoder(dict[str, Any]).decode
    with path.open("rb") as file:
        return [decode(line) for line in file]


@dataclass(frozen=True)
class Fitting:
    """`kept` are the indexes of the rows that are short enough, `refused` those that the chat template does not render,
    each with what it says.
    """

    rows: int
    kept: list[int]
    refused: Mapping[int, str] = field(default_factory=dict)

    def report(self, max_tokens: int, report: Callable[..., None]) -> None:
        """Say how many rows are left out, and why. Raises NoRowsError where it is all of them."""
        refused, why = len(self.refused), self.refused[min(self.refused)] if self.refused else ""
        if too_long := self.rows - len(self.kept) - refused:
            report(too_long, self.rows)
        if refused:
            report(refused, self.rows, why)
        if not self.kept and refused:
            raise NoRowsError(
                f"of {self.rows} rows the chat template refuses {refused} ({why}) and the others are longer than"
                f" {max_tokens} tokens"
            )
        if not self.kept:
            raise NoRowsError(f"all {self.rows} rows are longer than {max_tokens} tokens")


def within(
    tokenizer: Any,
    conversations: Sequence[Sequence[chat_template.Message]],
    generation_prompt: bool,
    max_tokens: int,
    turns: Sequence[list[int]] | None = None,
) -> Fitting:
    """Which conversations render to at most `max_tokens` tokens; in each its `turns` are to be found, for training."""
    kept: list[int] = []
    refused: dict[int, str] = {}
    for start in range(0, len(conversations), RENDER_ROWS):
        batch = conversations[start : start + RENDER_ROWS]
        for index, tokens in enumerate(_rendered(tokenizer, batch, generation_prompt), start):
            try:
                if isinstance(tokens, chat_template.TemplateRefusesError):
                    raise tokens
                if turns is not None:
                    chat_template.check_turns(tokenizer, conversations[index], turns[index])
            except chat_template.TemplateRefusesError as error:
                refused[index] = str(error)
                continue
            if len(tokens) <= max_tokens:
                kept.append(index)
    return Fitting(len(conversations), kept, refused)


def _rendered(
    tokenizer: Any, batch: Sequence[Sequence[chat_template.Message]], generation_prompt: bool
) -> list[list[int] | chat_template.TemplateRefusesError]:
    """All at once, which is faster; one by one where the template refuses one of them."""
    try:
        return list(chat_template.render_all(tokenizer, batch, generation_prompt))
    except chat_template.TemplateRefusesError as error:
        if len(batch) == 1:
            return [error]
        return [row for one in batch for row in _rendered(tokenizer, [one], generation_prompt)]


def ignore_warning(message: str, remedy: str) -> None:
    """For a caller who looks at nothing but the rows."""


def warn_of_thoughts(tokenizer: Any, conversations: Sequence[Sequence[chat_template.Message]], warn: Warn) -> None:
    """Say where thoughts are not trained, since the model's chat template writes none."""
    count = sum(any("reasoning_content" in message for message in messages) for messages in conversations)
    if count and not chat_template.reasoning_key(tokenizer):
        warn(
            f"{count} of {len(conversations)} rows have reasoning_content, which is not trained: {NO_THOUGHTS}",
            THOUGHTS_REMEDY,
        )


class ConversationRows(Dataset):
    """Conversations of which every assistant's turn is trained that has no weight 0, in the fields that verl's SFT
    trainer reads.

    verl has a dataset for this, which renders message by message: it cannot take a template that wants its roles in
    turn (Gemma's, Mistral's), nor one that renders a turn otherwise once others follow (Qwen3's).
    """

    def __init__(
        self, path: Path, tokenizer: Any, max_tokens: int, report: Callable[..., None], warn: Warn = ignore_warning
    ) -> None:
        rows = [row["messages"] for row in read_rows(path)]
        warn_of_thoughts(tokenizer, rows, warn)
        fitting = within(
            tokenizer, rows, False, max_tokens, [chat_template.trained_turns(messages) for messages in rows]
        )
        fitting.report(max_tokens, report)
        self._conversations = [rows[index] for index in fitting.kept]
        self._tokenizer = tokenizer
        self._encoded = lru_cache(maxsize=CACHED_ROWS)(self._encode)

    def __len__(self) -> int:
        return len(self._conversations)

    def __getitem__(self, item: int) -> dict[str, Any]:
        return dict(self._encoded(item))

    def _encode(self, item: int) -> dict[str, Any]:
        messages = self._conversations[item]
        tokens, mask = chat_template.trained_tokens(self._tokenizer, messages, chat_template.trained_turns(messages))
        return {
            "input_ids": torch.tensor(tokens),
            "loss_mask": torch.tensor(mask),
            "position_ids": torch.arange(len(tokens)),
        }


class PromptRows(Dataset):
    """Prompts with their reference answers, in the fields that verl's RL trainer and reward loop read."""

    def __init__(self, path: Path, tokenizer: Any, max_tokens: int, report: Callable[..., None]) -> None:
        rows = read_rows(path)
        fitting = within(tokenizer, [row["prompt"] for row in rows], True, max_tokens)
        fitting.report(max_tokens, report)
        self._kept = fitting.kept
        self._rows = [rows[index] for index in self._kept]
        self._tokenizer = tokenizer

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, item: int) -> dict[str, Any]:
        row = self._rows[item]
        return {
            # What verl's own agent loop gives to the template.
            "raw_prompt": chat_template.rendered_roles(self._tokenizer, row["prompt"]),
            "data_source": "rlhf",
            "reward_model": {"style": "rule", "ground_truth": row.get("answer")},
            "extra_info": {
                "index": self._kept[item],
                "metadata": row.get("metadata") or {},
                "prompt": row["prompt"],
            },
            "index": self._kept[item],
            "tools_kwargs": {},
            "interaction_kwargs": {},
            # verl wants a tensor in every batch.
            "dummy_tensor": torch.tensor([0], dtype=torch.uint8),
        }
