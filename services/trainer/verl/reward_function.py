"""A reward of ours as the function that verl's reward workers call (CUDA: verl's own agent loop)."""

from __future__ import annotations

from typing import Any

from services.trainer import rewards


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str | None,
    extra_info: dict[str, Any] | None = None,
    *,
    reward_name: str,
    reward_params: dict[str, Any],
    **_: object,
) -> dict[str, float]:
    """verl's signature: one answer in, its score and parts out."""
    metadata = (extra_info or {}).get("metadata") or {}
    sample = rewards.RewardSample(prompt="", completion=solution_str, answer=ground_truth, metadata=metadata)
    score = rewards.score(reward_name, dict(reward_params), [sample])[0]
    return {"score": score.score, **score.parts}
