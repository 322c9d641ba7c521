"""Whether a run learns, told from the metrics of its steps. Pure.

A fault is told once it has lasted for as many steps in a row as chance does not explain, and counted from then on. A
run in which nothing at all was learnt has failed, whatever its trainer returned.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from services.mesh.runs.spool import Problem
from services.trainer.training.tasks import LearnsFrom

# Steps in a row. One or two happen to a sound run: a warm-up begins at a learning rate of 0, the answers to a few
# prompts may all be right.
QUIET_STEPS = 3
# A reward that is 0 but rarely needs longer: its first hit is worth waiting for.
ZERO_REWARD_STEPS = 5
# A whole run of fewer may have met only prompts whose answers are all alike: it is warned, not failed.
REWARD_STEPS = 10
# Answers that are cut off have no end to learn, and a reward reads what is left of them. Some are always too long.
TRUNCATED_SHARE = 0.25
# Rows too long to be trained on, or refused by the chat template: fewer are a matter of course in any data set, more
# change what is learnt.
LEFT_OUT_SHARE = 0.05

_SEE_SAMPLES = "look at the samples (`rlhf job samples`)"
_UNIFORM_REMEDY = (
    f"{_SEE_SAMPLES}: where all are right, take harder prompts; where all are wrong, fine-tune first or choose a reward"
    " with steps between; more samples_per_prompt or a higher temperature make answers differ"
)
_ZERO_REMEDY = (
    f"{_SEE_SAMPLES} and give one of them to `rlhf reward test`: the reward may look for another form of answer than"
    " the model gives; where the answers are just wrong, fine-tune first"
)
_GRADIENT_REMEDY = (
    "look whether the rows have anything to learn (turns of the assistant, answers of a pair that differ) and whether"
    " what is trained can change (lora.target_modules); `rlhf job metrics` has the rest of the step"
)
_UNCHANGED_REMEDY = (
    "raise learning_rate; with precision bf16 an update below the weights' own precision is rounded away"
)
_NOT_FINITE_REMEDY = "lower learning_rate or gradient_clip, or compute in a wider precision; such a step is left out"
_TRUNCATED_REMEDY = "raise max_response_length, or fine-tune on shorter answers first"


@dataclass(frozen=True)
class StepHealth:
    """What the metrics of one step say; None where they say nothing."""

    # The gradient's norm, of the policy where there is a critic.
    gradient: float | None
    weights_changed: bool | None
    # Whether the rewards had any difference that can be learnt from, as the algorithm sees it.
    spread: bool | None
    zero_reward: bool | None
    truncated: float | None
    learning_rate: float | None

    @classmethod
    def of(cls, values: Mapping[str, float], learns_from: LearnsFrom) -> StepHealth:
        """`values` bear our names (verl/metrics.py)."""
        low, high = values.get("reward/min"), values.get("reward/max")
        changed, uniform = values.get("train/weights_changed"), values.get("reward/uniform_groups")
        spread = None
        if learns_from == "groups" and uniform is not None:
            spread = uniform < 1
        elif learns_from != "gradient" and low is not None and high is not None:
            spread = low != high
        return cls(
            gradient=values.get("train/grad_norm"),
            weights_changed=None if changed is None else changed > 0,
            spread=spread,
            zero_reward=None if low is None or high is None else low == high == 0,
            truncated=values.get("rollout/truncated_fraction"),
            learning_rate=values.get("train/learning_rate"),
        )

    @property
    def learnt(self) -> bool | None:
        """Whether weights moved for a reason; None of a step that updates no policy, as while a critic warms up."""
        if self.gradient is None:
            return None
        moved = self.gradient != 0 and math.isfinite(self.gradient) and self.weights_changed is not False
        return moved and self.spread is not False


@dataclass(frozen=True)
class NothingLearnt:
    message: str
    remedy: str
    # Chance does not explain it.
    certain: bool


class RunHealth:
    """Fed with the steps of a run, in order."""

    def __init__(self, learns_from: LearnsFrom) -> None:
        self._learns_from: LearnsFrom = learns_from
        self._streaks = {reason: _Streak() for reason in _PATIENCE}
        # Steps in which the policy was updated, and whether anything was learnt in one of them.
        self._updates = 0
        self._learnt = False
        self._last = ""

    def assume_learnt(self) -> None:
        """Of steps that were taken before and of which nothing is known here."""
        self._learnt = True

    def step(self, step: int, values: Mapping[str, float]) -> list[Problem]:
        """The problems to tell now that `step` is over."""
        found = StepHealth.of(values, self._learns_from)
        self._updates += found.learnt is not None
        self._learnt = self._learnt or bool(found.learnt)
        problems = []
        for reason, faulty in _faults(found).items():
            streak = self._streaks[reason]
            if count := streak.see(step, faulty, _PATIENCE[reason]):
                problems.append(self._problem(reason, streak, count, found))
        return problems

    def nothing_learnt(self) -> NothingLearnt | None:
        """Where the steps taken so far have taught nothing."""
        if self._learnt or not self._updates:
            return None
        # Without rewards no step may be idle; with them few answers may all be alike.
        certain = self._learns_from == "gradient" or self._updates >= REWARD_STEPS
        idle = {name: self._streaks[name].faulty for name in _IDLE}
        if idle["REWARDS_UNIFORM"]:
            # Rewards that are all 0 are uniform, too; that they were 0 is the cause only of a run in which all were.
            idle["REWARDS_UNIFORM"] += idle["REWARD_ZERO"]
        reason = max(idle, key=lambda name: idle[name])
        message = f"nothing was learnt in any of its {self._updates} steps: {self._why(reason)}"
        return NothingLearnt(message, _REMEDY[reason], certain)

    def _why(self, reason: str) -> str:
        if reason == "REWARDS_UNIFORM" and self._learns_from == "rewards":
            return "all answers had the same reward, so there was nothing to learn from"
        return _WHY[reason]

    def _problem(self, reason: str, streak: _Streak, count: int, found: StepHealth) -> Problem:
        where = f"in step {streak.last}"
        if streak.length > 1:
            row = " in a row" if streak.last - streak.first + 1 == streak.length else ""
            where = f"in {streak.length} steps{row}, {streak.first} to {streak.last}"
        return Problem(
            severity="warning",
            reason=reason,
            message=f"{self._why(reason)} {where}{_detail(reason, found)}",
            remedy=_REMEDY[reason],
            first_step=streak.first if count > 1 else streak.last,
            step=streak.last,
            count=count,
        )


@dataclass
class _Streak:
    """Steps in a row with a fault, and all that had it."""

    first: int = 0
    last: int = 0
    length: int = 0
    faulty: int = 0

    def see(self, step: int, faulty: bool | None, patience: int) -> int:
        """How many steps are to be told: none before the streak is as long as `patience`, then all, then each.

        A step of which nothing is known (None) neither ends a streak nor goes on with it.
        """
        if faulty is None:
            return 0
        if not faulty:
            self.length = 0
            return 0
        if not self.length:
            self.first = step
        self.length, self.last, self.faulty = self.length + 1, step, self.faulty + 1
        return 0 if self.length < patience else patience if self.length == patience else 1


# By reason. What follows from a fault is not told beside it: see `_faults`.
_PATIENCE = {
    "REWARD_ZERO": ZERO_REWARD_STEPS,
    "REWARDS_UNIFORM": QUIET_STEPS,
    "GRADIENT_NOT_FINITE": 1,
    "GRADIENT_ZERO": QUIET_STEPS,
    "WEIGHTS_UNCHANGED": QUIET_STEPS,
    "ANSWERS_TRUNCATED": QUIET_STEPS,
}
# Those that leave a step without effect; of several that are met equally often the first is the cause of the others.
_IDLE = ("REWARD_ZERO", "REWARDS_UNIFORM", "GRADIENT_NOT_FINITE", "GRADIENT_ZERO", "WEIGHTS_UNCHANGED")
_WHY = {
    "REWARD_ZERO": "every answer had the reward 0",
    "REWARDS_UNIFORM": "no prompt had answers of different reward, so there was nothing to learn from",
    "GRADIENT_NOT_FINITE": "the gradient was not finite",
    "GRADIENT_ZERO": "the gradient was exactly 0",
    "WEIGHTS_UNCHANGED": "no weight changed, although there was a gradient",
    "ANSWERS_TRUNCATED": f"more than {TRUNCATED_SHARE:.0%} of the answers were cut off at max_response_length",
}
_REMEDY = {
    "REWARD_ZERO": _ZERO_REMEDY,
    "REWARDS_UNIFORM": _UNIFORM_REMEDY,
    "GRADIENT_NOT_FINITE": _NOT_FINITE_REMEDY,
    "GRADIENT_ZERO": _GRADIENT_REMEDY,
    "WEIGHTS_UNCHANGED": _UNCHANGED_REMEDY,
    "ANSWERS_TRUNCATED": _TRUNCATED_REMEDY,
}


def _faults(found: StepHealth) -> dict[str, bool | None]:
    """By reason, whether the step has the fault."""
    uniform = None if found.spread is None else not found.spread
    gradient = found.gradient
    zero = None if gradient is None else gradient == 0 and not uniform
    changed = found.weights_changed
    return {
        "REWARD_ZERO": found.zero_reward,
        # A step of zeros is told as that, and ends no streak of steps without a difference.
        "REWARDS_UNIFORM": None if uniform and found.zero_reward else uniform,
        "GRADIENT_NOT_FINITE": None if gradient is None else not math.isfinite(gradient),
        "GRADIENT_ZERO": zero,
        "WEIGHTS_UNCHANGED": None if not gradient or changed is None else not changed and math.isfinite(gradient),
        "ANSWERS_TRUNCATED": None if found.truncated is None else found.truncated > TRUNCATED_SHARE,
    }


def _detail(reason: str, found: StepHealth) -> str:
    if reason == "WEIGHTS_UNCHANGED" and found.learning_rate is not None:
        return f" (learning rate {found.learning_rate:g})"
    if reason == "ANSWERS_TRUNCATED":
        return f" ({found.truncated:.0%} in the last)"
    return ""
