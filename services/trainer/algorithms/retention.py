"""Which checkpoints of a job stay, as every algorithm asks for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from services.mesh.errors import Violation
from services.mesh.validation.params import STRICT_FIELDS
from services.mesh.validation.partial import collect_violations

# What a checkpoint's own values are called.
VALIDATION_PREFIX = "validation/"


@dataclass(frozen=True)
class CheckpointSettings:
    """Which checkpoints stay: by default all, else the best by a validation series, and the last."""

    __pydantic_config__ = STRICT_FIELDS
    keep_best: Annotated[
        int | None, Field(ge=0, le=100_000, description="the best so many stay, and the last; null keeps all")
    ] = None
    keep_last: Annotated[int, Field(ge=1, le=100_000, description="so many of the newest stay in any case")] = 1
    metric: Annotated[
        str | None,
        Field(description="validation series that says which is best; null: the score, where there is none the loss"),
    ] = None
    mode: Annotated[
        Literal["max", "min"] | None,
        Field(description="whether more of it is better, or less; null: less of losses and perplexity"),
    ] = None
    keep_training_states: Annotated[
        int, Field(ge=1, le=1000, description="newest states that training can go on from, while the job runs")
    ] = 2


DEFAULT_CHECKPOINTS = CheckpointSettings()


def check_retention(settings: CheckpointSettings, has_validation: bool) -> list[Violation]:
    """What would keep other checkpoints than was meant."""
    return collect_violations(
        lambda: _check_keep_last(settings),
        lambda: _check_keep_best(settings, has_validation),
        lambda: _check_metric(settings),
    )


def _check_keep_last(settings: CheckpointSettings) -> list[Violation]:
    if settings.keep_best is not None or settings.keep_last == DEFAULT_CHECKPOINTS.keep_last:
        return []
    message = "keeps all while keep_best is null; set keep_best, 0 where only the newest shall stay"
    return [Violation("checkpoints.keep_last", message)]


def _check_keep_best(settings: CheckpointSettings, has_validation: bool) -> list[Violation]:
    if not settings.keep_best or has_validation:
        return []
    message = "nothing says which is best without a validation dataset; give one, or set keep_best to 0"
    return [Violation("checkpoints.keep_best", message)]


def _check_metric(settings: CheckpointSettings) -> list[Violation]:
    if not settings.keep_best or settings.metric is None or settings.metric.startswith(VALIDATION_PREFIX):
        return []
    message = f"must be a series of the validation, such as {VALIDATION_PREFIX}loss (got {settings.metric!r})"
    return [Violation("checkpoints.metric", message)]
