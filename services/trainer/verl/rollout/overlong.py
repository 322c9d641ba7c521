"""DAPO's soft punishment of long answers. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from services.rewards import Score


@dataclass(frozen=True)
class Overlong:
    """−penalty·(tokens − (limit − buffer)) / buffer from limit − buffer tokens on (arXiv:2503.14476, equation 13).

    `limit` is the length at which answers are cut, so `penalty` is the most that is taken.
    """

    limit: int
    buffer: int
    penalty: float

    @classmethod
    def of(cls, config: Any) -> Overlong | None:
        """As verl's own DAPO reward manager is told; None where no penalty is asked for."""
        settings = config.reward.get("reward_kwargs", {})
        buffer = settings.get("overlong_buffer_cfg")
        if buffer is None or not buffer.enable:
            return None
        return cls(settings.max_resp_len, buffer.len, buffer.penalty_factor)

    def applied(self, score: Score, tokens: int) -> Score:
        """`score` of an answer of `tokens` tokens with the penalty, which is a part of its own."""
        over = tokens - (self.limit - self.buffer)
        lost = -self.penalty * over / self.buffer if over > 0 else 0.0
        return Score(score.score + lost, {**score.parts, "overlong": lost})
