"""The launch plan as JSON."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec
import pytest

from services.mesh.runs.files import PLAN_FILE
from services.rewards.spec import RewardSpec
from services.trainer.training import launch_plan as plans
from services.trainer.training.launch_plan import LaunchPlan, PlanInputs, ResumePoint, ValidationPlan

PLAN = LaunchPlan(
    job="projects/p/trainingJobs/j",
    job_uid="u",
    attempt=2,
    algorithm="grpo",
    device="cpu",
    slots=1,
    ray_address="127.0.0.1:6379",
    ray_namespace="rlhf-u-2",
    model_path="/m",
    train_path="/t",
    validation_path="/v",
    validation=ValidationPlan(10, 8, 0.0, 4, RewardSpec("exact", {"strip": True})),
    reward=RewardSpec("exact"),
    trainer="rl",
    verl={"a.b": 1, "c": {"d": [1.5, None, "x"]}},
    adapter=False,
    max_tokens=16,
    total_steps=3,
    save_every_steps=0,
    resume_from=ResumePoint(1, "/s"),
    seed=1,
    work_dir="/w",
)


def test_a_plan_survives(tmp_path: Path) -> None:
    (tmp_path / PLAN_FILE).write_bytes(plans.encode(PLAN))
    assert plans.read(tmp_path) == PLAN
    bare = dataclasses.replace(PLAN, validation=None, validation_path=None, reward=None, resume_from=None)
    assert plans.decode(plans.encode(bare)) == bare


@pytest.mark.parametrize(
    "change", [{"trainer": "kto"}, {"slots": "1"}, {"device": "tpu"}, {"resume_from": {"step": 1}}]
)
def test_a_plan_of_another_shape_is_refused(change: dict) -> None:
    document = {**msgspec.json.decode(plans.encode(PLAN)), **change}
    with pytest.raises(msgspec.ValidationError):
        plans.decode(msgspec.json.encode(document))


def test_the_inputs_become_every_field_the_algorithm_does_not_set() -> None:
    names = {field.name for field in dataclasses.fields(PlanInputs)} - {"train_rows", "validation_rows"}
    values = {field.name: 0 for field in dataclasses.fields(PlanInputs)}
    common = PlanInputs(**values).common()  # type: ignore[arg-type]
    assert common.keys() == names
    assert names < {field.name for field in dataclasses.fields(LaunchPlan)}
