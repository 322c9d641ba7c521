"""Series that are worth a glance while a job runs, as each algorithm names them: few, the weightiest first."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Headline:
    """`title` is what a person calls the series."""

    metric: str
    title: str


LOSS = Headline("train/loss", "loss")
HELD_OUT_LOSS = Headline("validation/loss", "held-out loss")
HELD_OUT_ACCURACY = Headline("validation/accuracy", "held-out accuracy")
HELD_OUT_SCORE = Headline("validation/score/mean", "held-out score")
PAIR_ACCURACY = Headline("rewards/accuracy", "accuracy")
PAIR_MARGIN = Headline("rewards/margin", "margin")
REWARD = Headline("reward/mean", "reward")
# Of a reward that is shown and never trained on.
SECOND_REWARD = Headline("held_out/mean", "held-out reward")
KL = Headline("actor/kl", "KL")
ENTROPY = Headline("actor/entropy", "entropy")
TRUNCATED = Headline("rollout/truncated_fraction", "truncated")

# Of what answers prompts. A policy's loss says nothing.
POLICY = (REWARD, SECOND_REWARD, HELD_OUT_SCORE, KL, TRUNCATED, ENTROPY)
