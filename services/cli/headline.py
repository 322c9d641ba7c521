"""The series that an algorithm names as worth a glance, and their values as a person reads them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from services.cli import display
from services.mesh.errors import NotFound

if TYPE_CHECKING:
    from rlhf.trainer.v1.training_job_pb2 import HeadlineMetric
    from rlhf.type.v1.checkpoint_pb2 import Checkpoint

    from services.cli.jobkit.progress import Series
    from services.client import AsyncClient

VALIDATION = "validation/"
# Of these three decimals are shown, so that a column of them can be compared.
_SHARES = (VALIDATION, "reward", "held_out/", "rollout/")
_UNBOUNDED = ("loss", "perplexity")


async def of_algorithm(client: AsyncClient, algorithm: str) -> list[HeadlineMetric]:
    """Empty where the mesh has no such algorithm any more."""
    with contextlib.suppress(NotFound):
        return list((await client.algorithms.get(algorithm)).headline_metrics)
    return []


def measured(checkpoint: Checkpoint, headline: Sequence[Series]) -> list[tuple[str, str]]:
    """Title and value of each series that the checkpoint has."""
    found = ((series, checkpoint.metrics.get(series.metric, math.nan)) for series in headline)
    return [(series.title, text(series.metric, value)) for series, value in found if not math.isnan(value)]


def text(metric: str, value: float) -> str:
    is_share = metric.startswith(_SHARES) and not metric.endswith(_UNBOUNDED)
    return display.score(value) if is_share else display.number(value)
