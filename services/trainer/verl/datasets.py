"""Canonical rows (JSON lines) as the datasets that verl's trainers want.

Rows that are too long are left out here, before anything is trained, and counted, so that a run neither truncates an
answer silently nor fails in its middle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd
import torch
from torch.utils.data import Dataset
from verl.utils.dataset.multiturn_sft_dataset import MultiTurnSFTDataset

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


def within(
    tokenizer: Any, rows: list[dict[str, Any]], field: str, generation_prompt: bool, max_tokens: int
) -> list[int]:
    """Indexes of the rows whose `field` (messages) renders to at most `max_tokens` tokens."""
    kept: list[int] = []
    for start in range(0, len(rows), RENDER_ROWS):
        batch: Sequence[Any] = [row[field] for row in rows[start : start + RENDER_ROWS]]
        rendered = tokenizer.apply_chat_template(
            batch, add_generation_prompt=generation_prompt, tokenize=True, return_dict=False
        )
        kept.extend(start + index for index, tokens in enumerate(rendered) if len(tokens) <= max_tokens)
    return kept


def select(rows: list[dict[str, Any]], kept: list[int], max_tokens: int, report: Callable[[int, int], None]) -> None:
    """Report how many rows were left out. Raises NoRowsError when that is all of them."""
    if len(kept) < len(rows):
        report(len(rows) - len(kept), len(rows))
    if not kept:
        raise NoRowsError(f"all {len(rows)} rows are longer than {max_tokens} tokens")


class ConversationRows(MultiTurnSFTDataset):
    """verl's conversation dataset, read from JSON lines, each row rendered once.

    verl renders message by message and trains the tokens of assistant messages after the generation prompt; it refuses
    a chat template under which the messages' tokens don't add up to the conversation's.
    """

    def __init__(self, path: Path, tokenizer: Any, config: Any, report: Callable[[int, int], None]) -> None:
        self._path = path
        self._report = report
        super().__init__(parquet_files=[], tokenizer=tokenizer, config=config)
        self._render = lru_cache(maxsize=CACHED_ROWS)(super().__getitem__)

    def _read_files_and_process(self) -> None:
        from verl.utils.tokenizer.chat_template import extract_system_prompt_and_generation

        rows = read_rows(self._path)
        kept = within(self.tokenizer, rows, "messages", False, self.max_length)
        select(rows, kept, self.max_length, self._report)
        self.messages = [rows[index]["messages"] for index in kept]
        self.dataframe = pd.DataFrame({"messages": self.messages})
        self.tools = self.enable_thinking = None
        self.system_prompt, self.generation_prompt = extract_system_prompt_and_generation(
            self.tokenizer, **self.apply_chat_template_kwargs
        )

    def __getitem__(self, item: int) -> dict[str, Any]:
        return dict(self._render(item))


class PromptRows(Dataset):
    """Prompts with their reference answers, in the fields that verl's RL trainer and reward loop read."""

    def __init__(self, path: Path, tokenizer: Any, max_tokens: int, report: Callable[[int, int], None]) -> None:
        rows = read_rows(path)
        self._kept = within(tokenizer, rows, "prompt", True, max_tokens)
        select(rows, self._kept, max_tokens, report)
        self._rows = [rows[index] for index in self._kept]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, item: int) -> dict[str, Any]:
        row = self._rows[item]
        return {
            "raw_prompt": row["prompt"],
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
