"""A model as a hub has it: the same values, stored in a shorter type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def store_as(model: Path, folder: Path, dtype: torch.dtype, values: torch.dtype | None = None) -> Path:
    """Copy `model` to `folder`, its numbers rounded to `values` (default: `dtype`) and stored as `dtype`."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    loaded.to(values or dtype).to(dtype).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder
