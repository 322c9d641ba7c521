"""Which models score: by what transformers calls their architecture, and which parameters name one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

# A parameter's `json_schema_extra`: its text names a reward model, so a form can offer those that there are.
REWARD_MODEL: dict[str, Any] = {"format": "reward-model"}
_SCORES = "ForSequenceClassification"


def is_reward_model(architectures: Iterable[str] | None) -> bool:
    """Whether a model that its configuration calls so scores conversations, and writes none."""
    return any(name.endswith(_SCORES) for name in architectures or ())
