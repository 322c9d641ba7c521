"""A job with several things wrong is told all of them in one answer, and nothing that is not wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.mesh.errors import InvalidArgument, NotFound
from services.trainer.algorithms import algorithms
from services.trainer.entities import BaseModel, DatasetVersion, NewTrainingJob
from services.trainer.training import checks
from tests.fix_look_up import NoTrainingStates

PARENT = "projects/p"
ROWS = 4096
CONTEXT = 2048
FORMATS = {"sft": "messages", "dpo": "preference", "reward_model": "preference"}
POLICY = [name for name in algorithms.names() if name not in FORMATS]


class LookUp(NoTrainingStates):
    """All there is, except what is called `missing`."""

    def __init__(self, algorithm: str) -> None:
        self._format = FORMATS.get(algorithm, "prompt")

    async def dataset_version(self, name: str) -> DatasetVersion:
        self._there(name)
        return DatasetVersion(name, self._format, ROWS, 1000, ROWS)

    async def base_model(self, reference: str) -> BaseModel:
        self._there(reference)
        return BaseModel(reference, "0" * 64, 1000, CONTEXT)

    async def reward_model(self, reference: str) -> BaseModel:
        self._there(reference)
        return BaseModel(reference, "1" * 64, 1000, CONTEXT)

    async def files(self, model: BaseModel, paths: tuple[str, ...]) -> dict[str, bytes]:
        return {"tokenizer.json": b'{"model": {"vocab": {"a": 0}}}'}

    @staticmethod
    def _there(name: str) -> None:
        if "missing" in name:
            raise NotFound("NOT_FOUND", f"there is no {name}", name=name)


@dataclass(frozen=True)
class Fault:
    """What is sent, the fields that are named for it, what it leaves unknown, and what must be known to see it."""

    fields: set[str]
    params: dict[str, Any] = field(default_factory=dict)
    request: dict[str, Any] = field(default_factory=dict)
    hides: set[str] = field(default_factory=set)
    needs: set[str] = field(default_factory=set)


def params(name: str) -> str:
    return f"training_job.params.{name}"


def missing(collection: str) -> str:
    return f"{PARENT}/{collection}/missing"


EVERYWHERE = {
    "id": Fault({"training_job_id"}, request={"id": "No Id"}),
    "priority": Fault({"training_job.priority"}, request={"priority": 1000}),
    "slots": Fault({"training_job.placement.resources.gpu_count"}, request={"gpu_count": 9}, hides={"slots"}),
    "base": Fault({"training_job.base_model"}, request={"base_model": missing("models")}, hides={"base"}),
    "data": Fault(
        {"training_job.dataset_version"},
        request={"dataset_version": missing("datasets") + "/versions/1"},
        hides={"data"},
    ),
    "validation": Fault(
        {"training_job.validation_dataset_version"},
        request={"validation_dataset_version": missing("datasets") + "/versions/1"},
    ),
    "rate": Fault({params("learning_rate")}, {"learning_rate": 2}),
    "warmup": Fault({params("warmup_ratio")}, {"warmup_ratio": "x"}),
    "adapters": Fault({params("lora.rank"), params("lora.alfa")}, {"lora": {"rank": 0, "alfa": 1}}),
    "unknown": Fault({params("zzz")}, {"zzz": 1}),
    "attention": Fault({params("attention")}, {"attention": "flash_attention_2"}),
    "sequence": Fault({params("sequence_parallel")}, {"sequence_parallel": 2}),
    "kept": Fault({params("checkpoints.keep_last")}, {"checkpoints": {"keep_last": 3}}),
    "overrides": Fault({params("verl_overrides.none")}, {"verl_overrides": {"none": 1}}),
}
SUPERVISED = EVERYWHERE | {
    "batch": Fault({params("batch_size")}, {"batch_size": 0}, hides={"batch"}),
    "micro": Fault({params("micro_batch_size")}, {"micro_batch_size": 7}, needs={"batch", "slots"}),
    "length": Fault({params("max_length")}, {"max_length": CONTEXT + 1}, needs={"base"}),
}
ANSWERING = EVERYWHERE | {
    "prompts": Fault({params("prompts_per_step")}, {"prompts_per_step": 0}, hides={"batch"}),
    "micro": Fault({params("micro_batch_size")}, {"micro_batch_size": 7}, needs={"batch", "slots"}),
    "length": Fault({params("max_response_length")}, {"max_response_length": CONTEXT}, needs={"base"}),
    "kl": Fault({params("kl_kind")}, {"kl_coefficient": 0.1, "kl_in": "loss", "kl_kind": "kl"}),
    "reward": Fault(
        {params("reward.params.components.0.params.pattern"), params("reward.params.components.1.params.model")},
        {
            "reward": {
                "name": "weighted",
                "params": {
                    "components": [
                        {"name": "regex", "params": {"pattern": "("}},
                        {"name": "model", "params": {"model": missing("models")}},
                    ]
                },
            }
        },
    ),
    "judge": Fault(
        {params("held_out_reward.params.model"), params("held_out_reward.params.scale")},
        {"held_out_reward": {"name": "model", "params": {"model": missing("models"), "scale": 0}}},
    ),
}


async def wrong(algorithm: str, faults: list[Fault]) -> set[str]:
    request = {
        "parent": PARENT, "id": "", "algorithm": algorithm, "base_model": f"{PARENT}/models/m",
        "dataset_version": f"{PARENT}/datasets/d/versions/1", "validation_dataset_version": "", "params": {},
        "target": "", "gpu_count": 0, "priority": 0,
    }  # fmt: skip
    for fault in faults:
        request |= fault.request
        request["params"] |= fault.params
    try:
        await checks.check(NewTrainingJob(**request), checks.Capacity("cpu", 1), LookUp(algorithm))
    except InvalidArgument as error:
        return {violation.field for violation in error.violations}
    return set()


def faults_of(algorithm: str) -> dict[str, Fault]:
    return SUPERVISED if algorithm in FORMATS else ANSWERING


@pytest.mark.parametrize("algorithm", algorithms.names())
async def test_each_fault_alone_is_named_and_a_right_job_has_none(algorithm: str) -> None:
    assert await wrong(algorithm, []) == set()
    for name, fault in faults_of(algorithm).items():
        assert await wrong(algorithm, [fault]) == fault.fields, name


@settings(max_examples=60, deadline=None)
@given(st.data())
@pytest.mark.parametrize("algorithm", algorithms.names())
async def test_any_faults_are_all_named_and_nothing_else(algorithm: str, data: st.DataObject) -> None:
    known = faults_of(algorithm)
    chosen = [known[name] for name in data.draw(st.lists(st.sampled_from(sorted(known)), unique=True))]
    hidden = {what for fault in chosen for what in fault.hides}
    wanted = {name for fault in chosen if not fault.needs & hidden for name in fault.fields}
    assert await wrong(algorithm, chosen) == wanted


async def test_what_only_an_algorithm_of_its_own_checks_is_told_beside_the_rest() -> None:
    rate = {"learning_rate": 2}
    own = {
        "dpo": ({"loss_type": "ipo", "gamma": 1, "label_smoothing": 0.1}, {"gamma", "label_smoothing"}),
        "dapo": ({"overlong_buffer": 1000}, {"overlong_buffer"}),
        "reinforce_plus_plus": ({"group_baseline": True, "gamma": 0.9}, {"samples_per_prompt", "gamma"}),
        "ppo": (
            {"critic": {"learning_rate": 0, "micro_batch_size": 7, "warmup_steps": 100}, "steps": 5},
            {"critic.learning_rate", "critic.micro_batch_size", "critic.warmup_steps"},
        ),
        "reward_model": (
            {"checkpoints": {"keep_best": 1, "metric": "validation/score/mean", "mode": "most"}},
            {"checkpoints.metric", "checkpoints.keep_best", "checkpoints.mode"},
        ),
    }
    for algorithm, (given_, names) in own.items():
        found = await wrong(algorithm, [Fault(set(), given_ | rate)])
        assert found == {params(name) for name in names | {"learning_rate"}}, algorithm


async def test_an_unknown_algorithm_hides_its_parameters_and_nothing_else() -> None:
    found = await wrong("none", [EVERYWHERE[name] for name in ("id", "base", "data", "rate")])
    assert found == {
        "training_job_id", "training_job.algorithm", "training_job.base_model", "training_job.dataset_version",
    }  # fmt: skip
