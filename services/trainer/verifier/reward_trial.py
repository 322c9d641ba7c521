"""A reward on trial: scores samples in a process of its own, for a service that must not wait for it or die of it.

    python -m services.trainer.verifier reward < trial.json

One JSON object in, a Trial; one out, an Outcome.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from services import rewards
from services.mesh.processes.confinement import confine_or_say
from services.rewards.spec import RewardSite
from services.trainer.verifier.reward_scoring import LocalScorer


class TrialSample(msgspec.Struct, frozen=True):
    prompt: list[dict[str, str]]
    completion: str
    answer: str | None = None
    metadata: dict[str, Any] = {}


class Trial(msgspec.Struct, frozen=True):
    """Checked `params` of the reward `name`, and what they are tried on."""

    name: str
    params: dict[str, Any]
    site: RewardSite
    samples: list[TrialSample]


class Failure(msgspec.Struct, frozen=True):
    reason: str
    message: str
    remedy: str = ""


class Verdict(msgspec.Struct, frozen=True):
    """A score with its parts, or why there is none."""

    score: float = 0.0
    parts: dict[str, float] = {}
    error: Failure | None = None


class Outcome(msgspec.Struct, frozen=True):
    """One verdict a sample, in order, and the time that scoring took; or why the reward could not work at all."""

    verdicts: list[Verdict] = []
    elapsed_seconds: float = 0.0
    error: Failure | None = None


def main() -> int:
    replies = os.dup(1)
    os.dup2(2, 1)  # libraries print; the pipe is for the reply alone
    trial = msgspec.json.decode(sys.stdin.buffer.read(), type=Trial)
    if trial.site.models and trial.name == "model":
        # Others ask a judge over the network, or start a cage of their own.
        confine_or_say(map(Path, trial.site.models.values()), [])
    with os.fdopen(replies, "wb") as output:
        output.write(msgspec.json.encode(judge(trial)))
    return 0


def judge(trial: Trial) -> Outcome:
    """Score as training does: all samples as one batch; one by one where a sample of it can't be judged."""
    samples = [rewards.RewardSample(one.prompt, one.completion, one.answer, one.metadata) for one in trial.samples]
    surroundings = rewards.RewardContext(trial.site, load_model=LocalScorer)
    try:
        with rewards.opened(trial.name, trial.params, surroundings) as judged:
            began = time.monotonic()
            verdicts = _verdicts(judged, samples)
            return Outcome(verdicts, time.monotonic() - began)
    except rewards.RewardError as error:
        return Outcome(error=_failure(error))


def _verdicts(judged: rewards.Judge, samples: list[rewards.RewardSample]) -> list[Verdict]:
    """Raises RewardError for what is wrong with the reward and no sample."""
    try:
        return [Verdict(one.score, dict(one.parts)) for one in judged.score(samples)]
    except rewards.RewardError as error:
        if error.index is None:
            raise
        if len(samples) == 1:
            return [Verdict(error=_failure(error))]
    return [verdict for sample in samples for verdict in _verdicts(judged, [sample])]


def _failure(error: rewards.RewardError) -> Failure:
    return Failure(error.reason, str(error), error.remedy)
