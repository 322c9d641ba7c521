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
from services.trainer.training.tasks import DpoLoss, DpoTask, RewardModelLoss, RewardModelTask, RlTask, SftTask

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
    task=RlTask(RewardSpec("exact")),
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
    bare = dataclasses.replace(PLAN, validation=None, validation_path=None, task=SftTask(), resume_from=None)
    assert plans.decode(plans.encode(bare)) == bare


@pytest.mark.parametrize(
    "change",
    [
        {"task": {"type": "kto"}},
        {"task": {"type": "dpo"}},
        {"trainer": "kto"},
        {"slots": "1"},
        {"device": "tpu"},
        {"resume_from": {"step": 1}},
    ],
)
def test_a_plan_of_another_shape_is_refused(change: dict) -> None:
    document = {**msgspec.json.decode(plans.encode(PLAN)), **change}
    with pytest.raises(msgspec.ValidationError):
        plans.decode(msgspec.json.encode(document))


def test_a_plan_of_earlier_code_is_read_as_it_was_meant() -> None:
    """Its run may go on after an upgrade: fields of all trainers stood side by side."""
    document = msgspec.json.decode(plans.encode(PLAN))
    del document["task"]
    earlier = {**document, "reward": {"name": "exact", "params": {}}, "held_out_reward": None, "dpo": None}
    rl = {**earlier, "trainer": "rl", "learns_from": "groups"}
    assert plans.decode(msgspec.json.encode(rl)).task == RlTask(RewardSpec("exact"), None, "groups")
    loss = {"kind": "ipo", "beta": 0.2, "gamma": 0.0, "label_smoothing": 0.0}
    dpo = {**earlier, "trainer": "dpo", "reward": None, "dpo": loss}
    assert plans.decode(msgspec.json.encode(dpo)).task == DpoTask(DpoLoss("ipo", 0.2))
    assert plans.decode(msgspec.json.encode({**earlier, "trainer": "sft", "reward": None})).task == SftTask()
    judge = {**earlier, "trainer": "reward_model", "reward_model": {"margin": 1.0}, "pair_validation": None}
    assert plans.decode(msgspec.json.encode(judge)).task == RewardModelTask(RewardModelLoss(1.0))


def test_the_inputs_become_every_field_the_algorithm_does_not_set() -> None:
    names = {field.name for field in dataclasses.fields(PlanInputs)} - {"train_rows", "validation_rows"}
    values = {field.name: 0 for field in dataclasses.fields(PlanInputs)}
    common = PlanInputs(**values).common()  # type: ignore[arg-type]
    assert common.keys() == names
    assert names < {field.name for field in dataclasses.fields(LaunchPlan)}
