"""Where a running training job stands: its checkpoints beside what every job reports."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from services.cli import headline
from services.cli.jobkit.progress import Progress, Series
from services.cli.session import collect
from services.client import references

if TYPE_CHECKING:
    from rlhf.trainer.v1.training_job_pb2 import TrainingJob
    from rlhf.type.v1.checkpoint_pb2 import Checkpoint

    from services.client import AsyncClient


class TrainingProgress(Progress):
    """`headline` are the series that the job's algorithm names."""

    def __init__(self, job: TrainingJob, headline: Sequence[Series] = ()) -> None:
        super().__init__(job, headline)
        self._checkpoints: dict[str, str] = {}

    @classmethod
    async def of(cls, client: AsyncClient, job: TrainingJob) -> TrainingProgress:
        return cls(job, await headline.of_algorithm(client, job.algorithm))

    def take_event(self, event: Any) -> list[str]:
        if event.HasField("checkpoint"):
            return self.take_checkpoints([event.checkpoint])
        return super().take_event(event)

    async def refresh(self, client: AsyncClient) -> list[str]:
        """Look again at what no stream carries; what is worth saying about it."""
        found = await collect(client.checkpoints.list(self.job.name))
        return self.take_checkpoints(found)

    def take_checkpoints(self, checkpoints: Iterable[Checkpoint]) -> list[str]:
        """What is new about them."""
        from rlhf.type.v1.checkpoint_pb2 import Checkpoint as Type

        said = []
        for found in sorted(checkpoints, key=lambda item: item.step):
            state = Type.State.Name(found.state).removeprefix("STATE_")
            if self._checkpoints.get(found.name) == state:
                continue
            self._checkpoints[found.name] = state
            if found.state != Type.STATE_VERIFYING:
                said.append(f"checkpoint {references.short(found.name)} is {state.lower()}{self._judged(found)}")
        return said

    def _judged(self, checkpoint: Checkpoint) -> str:
        """Its validation, in the words of the headline."""
        return "".join(f", {title} {value}" for title, value in headline.measured(checkpoint, self.headline))
