"""What the checks of a training job look up, where a test has no training state to go on from."""

from __future__ import annotations

from services.mesh.errors import NotFound
from services.trainer.entities import Checkpoint, TrainingSpec


class NoTrainingStates:
    async def training_state(self, name: str) -> tuple[Checkpoint, TrainingSpec]:
        raise NotFound("CHECKPOINT_NOT_FOUND", f"there is no {name}", name=name)
