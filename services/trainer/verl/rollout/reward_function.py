"""A reward of ours as the function that verl's reward workers call (CUDA: verl's own agent loop)."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import msgspec

from services import rewards
from services.rewards.spec import RewardSite, RewardSpec
from services.trainer.verl.rollout.reward_actor import ActorScorer

# Of an answer that could not be judged: why, as JSON.
FAILED = "failed"


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
) -> dict[str, float | str]:
    """verl's signature: one answer in, its score and parts out; those of the held-out reward under `held_out/`.

    An error is an answer too (`FAILED`): verl would take one that is raised for a fault of the prompt, and ask another.
    Its score is no number, so that no filter of groups can take it for that of an answer.
    """
    extra = extra_info or {}
    prompt = [dict(turn) for turn in extra.get("prompt") or []]
    sample = rewards.RewardSample(prompt, solution_str, ground_truth, dict(extra.get("metadata") or {}))
    try:
        score = _opened(reward, site).score([sample])[0]
        values: dict[str, float | str] = {"score": score.score, **score.parts}
        if held_out_reward:
            held_out = _opened(held_out_reward, site).score([sample])[0]
            values["held_out/score"] = held_out.score
            values |= {f"held_out/{part}": value for part, value in held_out.parts.items()}
    except rewards.RewardError as error:
        return {"score": math.nan, FAILED: msgspec.json.encode((str(error), error.reason, error.remedy)).decode()}
    return values


def failure(values: Mapping[str, Any]) -> rewards.RewardError | None:
    """What was wrong with an answer's reward, of what `compute_score` gave for it."""
    if FAILED not in values:
        return None
    message, reason, remedy = msgspec.json.decode(values[FAILED], type=tuple[str, str, str])
    return rewards.RewardError(message, reason=reason, remedy=remedy)


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

    surroundings = rewards.RewardContext(place, wait, load_model=lambda folder: ActorScorer(folder, lambda: None))
    return rewards.open_judge(spec.name, spec.params, surroundings)
