"""A reward model at work in this process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from services.rewards import RewardError, RewardSample

# Rows of a forward pass: of about the same length, so that little of it is padding.
BATCH_SIZE = 16


class LocalScorer:
    """See `rewards.ModelScorer`."""

    def __init__(self, folder: str) -> None:
        """Raises RewardError where the folder holds no reward model that loads."""
        try:
            # Whoever may have to load one imports this, and torch and transformers take seconds.
            from services.trainer.verifier.pair_scores import RewardModelScorer

            self._model = RewardModelScorer(Path(folder))
        except Exception as error:
            # transformers raises every kind here.
            message = f"the reward model does not load: {type(error).__name__}: {error}"
            raise RewardError(message[:1000], reason="REWARD_MODEL_UNUSABLE") from error
        self._longest: int | None = getattr(self._model.model.config, "max_position_embeddings", None)

    def score(self, samples: Sequence[RewardSample]) -> list[float]:
        rows = [self._tokens(sample, index) for index, sample in enumerate(samples)]
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        scores = [0.0] * len(rows)
        for at in range(0, len(order), BATCH_SIZE):
            batch = order[at : at + BATCH_SIZE]
            for index, score in zip(batch, self._model.scores([rows[index] for index in batch]), strict=True):
                scores[index] = score
        return scores

    def _tokens(self, sample: RewardSample, index: int) -> list[int]:
        """Raises RewardError for what the model can't take in: cut short it would be judged as something else."""
        prompt: list[dict[str, Any]] = (
            [{"role": "user", "content": sample.prompt}]
            if isinstance(sample.prompt, str)
            else [dict(turn) for turn in sample.prompt]
        )
        try:
            tokens = self._model.tokens([*prompt, {"role": "assistant", "content": sample.completion}])
        except Exception as error:
            message = f"the reward model's chat template refuses the conversation: {error}"
            raise RewardError(message[:500], index) from error
        if not tokens or (self._longest is not None and len(tokens) > self._longest):
            message = (
                f"prompt and completion take {len(tokens)} tokens, and the reward model takes 1 to {self._longest}"
            )
            raise RewardError(message, index, remedy="lower max_response_length, or train one with a longer context")
        return tokens

    def close(self) -> None:
        pass
