"""The demonstration's numbers, and why they are what they are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from services.cli.demo.problems import Sizes


@dataclass(frozen=True)
class Settings:
    """What is generated, what is trained and how long."""

    sizes: Sizes
    # A transformers config for a model from scratch.
    config: dict[str, Any]
    sft: dict[str, Any]
    grpo: dict[str, Any]
    # Whether GRPO has to gain beyond the intervals; a run cut short shows that everything works, and no gain.
    demands_gain: bool = True
    validation: dict[str, Any] = field(default_factory=dict)

    def params(self, algorithm: dict[str, Any]) -> dict[str, Any]:
        """The params of a job: every held-out problem is answered, by the likeliest token."""
        held_out = self.sizes.held_out
        validation = {"rows": held_out, "batch_size": min(held_out, 500), "temperature": 0.0, **self.validation}
        return {**algorithm, "validation": validation, "reward": {"name": "exact"}}


DIGITS = 6
# 0.4 million weights: a step takes about a second on two cores.
_CONFIG = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
# An answer and the token that ends it.
_ANSWER_TOKENS = DIGITS + 2
# It takes minutes: nothing is to be lost in between.
_AT_THE_END = {"save_every_steps": 0}
# Enough for the form and for about half of the answers: what is left is for GRPO to learn from its own tries.
_SFT = {"learning_rate": 2e-3, "scheduler": "constant", "batch_size": 64, "steps": 120, "max_length": 32, **_AT_THE_END}
# 1e-3 diverges. Every prompt is seen once.
_GRPO = {
    "learning_rate": 3e-4,
    "prompts_per_step": 64,
    "samples_per_prompt": 8,
    "steps": 60,
    **_AT_THE_END,
    "max_prompt_length": 16,
    "max_response_length": _ANSWER_TOKENS,
}

FULL = Settings(
    sizes=Sizes(examples=200, prompts=3840, held_out=1000, digits=DIGITS),
    config=_CONFIG,
    sft=_SFT,
    grpo=_GRPO,
    validation={"max_new_tokens": _ANSWER_TOKENS},
)
SHORT = Settings(
    sizes=Sizes(examples=200, prompts=320, held_out=100, digits=DIGITS),
    config=_CONFIG,
    sft={**_SFT, "steps": 20},
    grpo={**_GRPO, "steps": 5},
    demands_gain=False,
    validation={"max_new_tokens": _ANSWER_TOKENS},
)
