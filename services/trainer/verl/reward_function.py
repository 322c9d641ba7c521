"""A reward of ours as the function that verl's reward workers call (CUDA: verl's own agent loop)."""

from __future__ import annotations

import threading
import time
from functools import lru_cache
from typing import Any

import msgspec

from services.trainer import rewards
from services.trainer.plan import RewardSite, RewardSpec
from services.trainer.verl.reward_actor import ActorScorer


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str | None,
    extra_info: dict[str, Any] | None = None,
    *,
    reward: str,
    held_out_reward: str,
    site: str,
    **_: object,
) -> dict[str, float]:
    """verl's signature: one answer in, its score and parts out; those of the held-out reward under `held_out/`."""
    extra = extra_info or {}
    prompt = [dict(turn) for turn in extra.get("prompt") or []]
    sample = rewards.RewardSample(prompt, solution_str, ground_truth, dict(extra.get("metadata") or {}))
    score = _opened(reward, site).score([sample])[0]
    values = {"score": score.score, **score.parts}
    if held_out_reward:
        held_out = _opened(held_out_reward, site).score([sample])[0]
        values |= {"held_out/score": held_out.score, **{f"held_out/{part}": n for part, n in held_out.parts.items()}}
    return values


_opening = threading.Lock()


def _opened(reward: str, site: str) -> rewards.Judge:
    """verl calls from many threads at a time: the first of them opens it, alone."""
    with _opening:
        return _judge(reward, site)


@lru_cache(maxsize=8)
def _judge(reward: str, site: str) -> rewards.Judge:
    """One for the life of the worker. Whoever stops the run ends its workers, so that a wait need not look for it."""
    spec = msgspec.json.decode(reward, type=RewardSpec)
    place = msgspec.json.decode(site, type=RewardSite)

    def wait(why: str, seconds: float) -> None:
        time.sleep(seconds)

    surroundings = rewards.Surroundings(place, wait, load_model=lambda folder: ActorScorer(folder, lambda: None))
    return rewards.open_judge(spec.name, spec.params, surroundings)
