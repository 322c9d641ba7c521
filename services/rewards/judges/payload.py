"""A sample as what is sent to whoever judges it. Pure."""

from __future__ import annotations

from typing import Any

from services.rewards import RewardSample


def plain(sample: RewardSample) -> dict[str, Any]:
    """As JSON values: prompt (a text, or messages), completion, answer (None where there is none), metadata."""
    return {
        "prompt": sample.prompt if isinstance(sample.prompt, str) else [dict(turn) for turn in sample.prompt],
        "completion": sendable(sample.completion),
        "answer": sample.answer,
        "metadata": dict(sample.metadata),
    }


def sendable(text: str) -> str:
    """Half a surrogate pair, which a sampled token may leave behind, is no UTF-8 and so no JSON: it becomes `?`."""
    return text.encode("utf-8", "replace").decode()
