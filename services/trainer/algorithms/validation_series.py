"""The series that a job's validation makes, and which of them says what checkpoint is best. Pure."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from typing import TypeVar

from services import rewards
from services.mesh.errors import Violation
from services.mesh.validation.partial import collect_violations
from services.trainer.algorithms.common_params import RewardSettings, RunParams, TrainingParams
from services.trainer.algorithms.retention import VALIDATION_PREFIX
from services.trainer.training.launch_plan import JobFacts

LOSS, PERPLEXITY = "validation/loss", "validation/perplexity"
ACCURACY, MARGIN = "validation/accuracy", "validation/margin"
SCORE = "validation/score/mean"
LOWER_IS_BETTER = (LOSS, PERPLEXITY)

P = TypeVar("P", bound=RunParams)


@dataclass(frozen=True)
class Series:
    """`names`, the first of which chooses where the job doesn't say; `any_part`: `validation/<part>/mean` too, where
    only the judge knows its parts."""

    names: tuple[str, ...]
    any_part: bool = False

    def __contains__(self, metric: str) -> bool:
        return metric in self.names or (self.any_part and metric.endswith("/mean"))

    def __str__(self) -> str:
        return ", ".join([*self.names, *([f"{VALIDATION_PREFIX}<part>/mean"] if self.any_part else [])])


def series(params: RunParams, facts: JobFacts) -> Series:
    """Of a validation on rows of the job's format; of each that is taken where the job has no validation."""
    kinds = params.held_out.keys() if facts.validation_format is None else [facts.validation_format]
    losses = tuple(name for kind in kinds for name in params.held_out.get(kind, ()))
    reward = scoring(params, facts)
    if reward is None:
        return Series(losses)
    parts = rewards.parts(reward.name, reward.params)
    return Series((SCORE, *(f"{VALIDATION_PREFIX}{part}/mean" for part in sorted(parts or ())), *losses), parts is None)


def scoring(params: RunParams, facts: JobFacts) -> RewardSettings | None:
    """What scores the validation answers (weights/questions.reward_for); None where nothing does."""
    if not isinstance(params, TrainingParams):
        return None
    exact = RewardSettings() if facts.validation_format in (None, "prompt") else None
    return params.reward or exact


def check_metric(params: RunParams, facts: JobFacts) -> list[Violation]:
    """That what says which checkpoint is best is a series of the validation, and that the best is what is kept."""
    if not params.checkpoints.keep_best:
        return []
    return collect_violations(lambda: _check_name(params, facts), lambda: _check_mode(params))


def _check_name(params: RunParams, facts: JobFacts) -> list[Violation]:
    metric = params.checkpoints.metric
    # Of another kind it is refused for all algorithms alike.
    if metric is None or not metric.startswith(VALIDATION_PREFIX):
        return []
    made = series(params, facts)
    if metric in made:
        return []
    near = difflib.get_close_matches(metric, made.names, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    reward = scoring(params, facts)
    judged = f" with reward {reward.name!r}" if reward is not None else ""
    message = f"is no series of the validation{judged}, which makes {made} (got {metric!r}){hint}"
    return [Violation("checkpoints.metric", message)]


def _check_mode(params: RunParams) -> list[Violation]:
    kept = params.checkpoints
    if kept.mode != "max" or kept.metric not in LOWER_IS_BETTER:
        return []
    return [
        Violation("checkpoints.mode", f"must be min or null: of {kept.metric} less is better, and max keeps the worst")
    ]


def settle(params: P, facts: JobFacts) -> P:
    """`params` that name what says which checkpoint is best, where the best are kept."""
    kept = params.checkpoints
    if not kept.keep_best:
        return params
    metric = kept.metric or series(params, facts).names[0]
    mode = kept.mode or ("min" if metric in LOWER_IS_BETTER else "max")
    return replace(params, checkpoints=replace(kept, metric=metric, mode=mode))
