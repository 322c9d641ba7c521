"""The rule by which checkpoints stay or are let go. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from services.mesh.validation import params
from services.trainer.algorithms.retention import CheckpointSettings
from services.trainer.entities import Checkpoint, CheckpointState


def settings_of(job_params: Mapping[str, Any]) -> CheckpointSettings:
    """A job's settings; the defaults for a job of a time when there were none."""
    return params.parse(CheckpointSettings, job_params.get("checkpoints") or {}, "params.checkpoints")


def surplus(
    checkpoints: Sequence[Checkpoint], settings: CheckpointSettings, in_use: frozenset[str]
) -> list[Checkpoint]:
    """The READY ones that the rule lets go; never the newest, and none of those in use.

    One whose value is missing or not a number ranks behind all that have one; of equal values the newer is the better.
    While none has a value nothing says which is best, and nothing is let go.
    """
    if settings.keep_best is None:
        return []
    ready = sorted((one for one in checkpoints if one.state is CheckpointState.READY), key=lambda one: -one.step)
    ranks = {one.step: _rank(one, settings) for one in ready}
    if settings.keep_best and all(rank == -math.inf for rank in ranks.values()):
        return []
    best = sorted(ready, key=lambda one: (-ranks[one.step], -one.step))[: settings.keep_best]
    kept = {one.step for one in (*ready[: settings.keep_last], *best)}
    return [one for one in ready if one.step not in kept and one.name not in in_use]


def surplus_unconfirmed(checkpoints: Sequence[Checkpoint], settings: CheckpointSettings) -> list[Checkpoint]:
    """Those that could not be confirmed whose files the rule lets go: all but as many of the newest as it keeps of
    READY ones."""
    if settings.keep_best is None:
        return []
    unconfirmed = sorted((one for one in checkpoints if one.files_kept), key=lambda one: -one.step)
    return unconfirmed[settings.keep_best + settings.keep_last :]


def reason(settings: CheckpointSettings) -> str:
    newest = "the newest" if settings.keep_last == 1 else f"the newest {settings.keep_last}"
    if not settings.keep_best:
        return f"the job keeps {newest}"
    better = "lowest" if settings.mode == "min" else "highest"
    return f"the job keeps the {settings.keep_best} of the {better} {settings.metric}, and {newest}"


def _rank(checkpoint: Checkpoint, settings: CheckpointSettings) -> float:
    """Higher is better. A job that keeps the best has named its metric and mode when it was created."""
    value = checkpoint.metrics.get(settings.metric or "", math.nan)
    if math.isnan(value):
        return -math.inf
    return -value if settings.mode == "min" else value
