"""A job that goes on from another's training state has steps left to take."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from services.mesh.errors import InvalidArgument
from services.trainer.entities import Checkpoint, NewTrainingJob, TrainingSpec
from services.trainer.training import checks
from tests.unit.trainer.test_all_at_once import PARENT, ROWS, LookUp
from tests.unit.trainer.test_retention import checkpoint

SITE = checks.Capacity("cpu", 1)
NEW = NewTrainingJob(
    parent=PARENT,
    id="",
    algorithm="sft",
    base_model=f"{PARENT}/models/m",
    dataset_version=f"{PARENT}/datasets/d/versions/1",
    validation_dataset_version="",
    params={"batch_size": 8},
    target="",
    gpu_count=0,
    priority=0,
)


class State(LookUp):
    def __init__(self, step: int, spec: TrainingSpec) -> None:
        super().__init__("sft")
        self._found = checkpoint(step, None), spec

    async def training_state(self, name: str) -> tuple[Checkpoint, TrainingSpec]:
        return self._found


async def check(step: int, **params: Any) -> TrainingSpec:
    spec = await checks.check(NEW, SITE, LookUp("sft"))
    resumed = replace(NEW, params=NEW.params | params, resume_from=f"{PARENT}/trainingJobs/j/checkpoints/step-{step}")
    return await checks.check(resumed, SITE, State(step, spec))


@pytest.mark.parametrize(
    ("params", "field"),
    [({}, "epochs"), ({"epochs": 1}, "epochs"), ({"steps": 100}, "steps"), ({"steps": 512}, "steps")],
)
async def test_nothing_is_left_to_train(params: dict[str, int], field: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        await check(ROWS // 8, **params)
    [violation] = refused.value.violations
    assert violation.field == f"training_job.params.{field}" and "512" in violation.description


@pytest.mark.parametrize("params", [{"epochs": 2}, {"steps": 513}])
async def test_one_that_goes_further_is_taken(params: dict[str, int]) -> None:
    assert (await check(ROWS // 8, **params)).resume_from
    assert (await check(ROWS // 8 - 1)).resume_from
