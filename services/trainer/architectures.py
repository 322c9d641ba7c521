"""What the architectures are called that transformers gives a model."""

from __future__ import annotations

from collections.abc import Iterable

_SCORES = "ForSequenceClassification"


def is_reward_model(architectures: Iterable[str] | None) -> bool:
    """Whether a model that its configuration calls so scores conversations, and writes none."""
    return any(name.endswith(_SCORES) for name in architectures or ())
