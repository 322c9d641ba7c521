"""Training jobs as a kind of job of the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from services.cli import training_views
from services.cli.jobkit.kind import JobKind

if TYPE_CHECKING:
    from services.cli.jobkit.progress import Progress
    from services.client import AsyncClient


async def _progress(client: AsyncClient, job: Any) -> Progress:
    from services.cli.training_progress import TrainingProgress

    return await TrainingProgress.of(client, job)


TRAINING_JOBS = JobKind(
    command="job",
    noun="job",
    example="grpo-k3x9qa",
    jobs=lambda client: client.training_jobs,
    columns=training_views.JOBS,
    facts=training_views.facts,
    progress=_progress,
    create="rlhf train",
    made="checkpoints, metrics, logs and samples",
    next_step="its model: rlhf checkpoint download {name} --to DIRECTORY",
    # Of any algorithm.
    pace=("time/step_seconds", "train/loss"),
)
