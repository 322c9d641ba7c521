"""Algorithms: what their checks refuse, and the verl settings they make."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.mesh.errors import InvalidArgument
from services.mesh.registry import summary
from services.mesh.validation.params import parse, schema, to_json
from services.trainer.algorithms import algorithms
from services.trainer.algorithms.verl_config import largest_divisor, total_steps
from services.trainer.training.launch_plan import JobFacts, LaunchPlan, PlanInputs
from services.trainer.training.tasks import RlTask

FACTS = JobFacts(device="cpu", slots=1, train_format="", train_rows=1000, validation_format="prompt")
INPUTS = PlanInputs(
    job="projects/p/trainingJobs/j",
    job_uid="u",
    attempt=1,
    device="cpu",
    slots=1,
    ray_address="a",
    ray_namespace="n",
    model_path="/m",
    train_path="/t",
    train_rows=1000,
    validation_path="/v",
    validation_rows=500,
    resume_from=None,
    work_dir="/w",
)


def check(name: str, params: dict[str, Any], **facts: Any) -> dict[str, str]:
    """Violations by field."""
    entry = algorithms.get(name)
    known = dataclasses.replace(FACTS, **{"train_format": entry.dataset_formats[0], **facts})
    return {found.field: found.description for found in entry.check(parse(entry.Params, params), known)}


def plan(name: str, params: dict[str, Any], **inputs: Any) -> LaunchPlan:
    entry = algorithms.get(name)
    return entry.plan(parse(entry.Params, params), dataclasses.replace(INPUTS, **inputs))


@pytest.mark.parametrize("name", algorithms.names())
def test_every_entry_describes_itself_and_its_defaults_are_valid(name: str) -> None:
    entry = algorithms.get(name)
    assert len(summary(entry)) > 30
    params = parse(entry.Params, {})
    assert parse(entry.Params, to_json(params)) == params
    assert all("default" in field for field in schema(entry.Params)["properties"].values())
    assert check(name, {}, validation_format=None) == {}
    assert plan(name, {}).algorithm == name


def test_a_plan_is_made_without_torch() -> None:
    """Services make plans, and start in a second."""
    code = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(('torch', 'verl', 'transformers', 'ray', 'grpc', 'vllm')))\n"
        "from services.trainer.algorithms import algorithms\n"
        "from services.trainer.training import launch_plan as plan; from services.mesh.runs import spool\n"
        "assert algorithms.names()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_all_that_is_wrong_is_said_at_once() -> None:
    found = check(
        "sft",
        {"batch_size": 64, "max_length": 100, "reward": {"name": "exact", "params": {"nonsense": 1}}},
        train_format="prompt",
        train_rows=10,
        slots=3,
        context_length=64,
        model_parameters=10**9,
        memory_bytes=10**9,
    )
    assert found.keys() == {"dataset", "batch_size", "slots", "max_length", "reward.params.nonsense"}


@pytest.mark.parametrize(
    ("name", "params", "facts", "field"),
    [
        ("sft", {"batch_size": 64, "micro_batch_size": 10}, {}, "micro_batch_size"),
        ("sft", {"batch_size": 1001}, {}, "batch_size"),
        ("sft", {"reward": {"name": "nosuch"}}, {}, "reward.name"),
        ("sft", {"lora": {"target_modules": "${oc.env:RLHF_RUN_SECRET}"}}, {}, "lora.target_modules"),
        (
            "dpo",
            {"lora": {"target_modules": ["q_proj", "${data}"]}},
            {"train_format": "preference"},
            "lora.target_modules",
        ),
        ("sft", {}, {"validation_format": "preference"}, "validation_dataset"),
        ("grpo", {"prompts_per_step": 16, "mini_batch_size": 5}, {}, "mini_batch_size"),
        ("grpo", {"prompts_per_step": 3, "samples_per_prompt": 3}, {"slots": 2}, "slots"),
        ("grpo", {"prompts_per_step": 4, "samples_per_prompt": 4, "micro_batch_size": 3}, {}, "micro_batch_size"),
        ("grpo", {"max_prompt_length": 40, "max_response_length": 40}, {"context_length": 64}, "max_response_length"),
    ],
)
def test_a_check_names_the_field(name: str, params: dict, facts: dict, field: str) -> None:
    assert list(check(name, params, **facts)) == [field]


def test_adapters_and_slots_save_memory() -> None:
    facts = {"model_parameters": 10**9, "memory_bytes": 12 * 10**9}
    assert "slots" in check("sft", {}, **facts)
    assert check("sft", {}, **facts, slots=2) == {}
    assert check("sft", {"lora": {}}, **facts) == {}
    # The reference of a KL penalty is one more copy of the weights.
    exact = {"model_parameters": 10**9, "memory_bytes": 20 * 10**9}
    assert check("grpo", {}, **exact) == {}
    assert "slots" in check("grpo", {"kl_coefficient": 0.1}, **exact)


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"learning_rate": 0}, "params.learning_rate"),
        ({"samples_per_prompt": 1}, "params.samples_per_prompt"),
        ({"learning_rat": 1e-3}, "params.learning_rat"),
        ({"lora": {"rank": 0}}, "params.lora.rank"),
        ({"temperature": 0}, "params.temperature"),
    ],
)
def test_wrong_params_are_refused(params: dict, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse(algorithms.get("grpo").Params, params)
    assert [violation.field for violation in caught.value.violations] == [field]


def test_steps_are_given_or_counted() -> None:
    assert plan("sft", {"batch_size": 64, "epochs": 2}).total_steps == 2 * (1000 // 64)
    assert plan("sft", {"batch_size": 64, "epochs": 2, "steps": 7}).total_steps == 7
    assert total_steps(None, 3, 10, 4) == 6


def test_a_plan_carries_the_parameters_into_verls_settings() -> None:
    made = plan("grpo", {"learning_rate": 3e-4, "prompts_per_step": 16, "clip_high": 0.3, "kl_coefficient": 0.1})
    actor = "actor_rollout_ref.actor"
    assert made.verl[f"{actor}.optim.lr"] == 3e-4
    assert made.verl[f"{actor}.clip_ratio_high"] == 0.3
    assert made.verl[f"{actor}.use_kl_loss"] is True
    assert made.verl["data.train_batch_size"] == made.verl[f"{actor}.ppo_mini_batch_size"] == 16
    assert isinstance(made.task, RlTask) and made.task.reward.name == "exact"
    assert plan("grpo", {}).verl[f"{actor}.use_kl_loss"] is False


def test_each_device_has_its_rollout_and_precision() -> None:
    cpu, cuda = plan("grpo", {}), plan("grpo", {}, device="cuda")
    name = "actor_rollout_ref.rollout.name"
    assert (cpu.verl[name], cuda.verl[name]) == ("transformers", "vllm")
    dtype = "actor_rollout_ref.actor.fsdp_config.mixed_precision"
    assert (cpu.verl[dtype]["param_dtype"], cuda.verl[dtype]["param_dtype"]) == ("fp32", "bf16")


@pytest.mark.parametrize(
    ("params", "inputs", "skipped"),
    [
        ({}, {}, True),
        ({"mini_batch_size": 32}, {}, False),
        ({"top_p": 0.9}, {}, False),
        ({"precision": "bf16"}, {}, False),
        ({"lora": {}}, {}, False),
        ({}, {"device": "cuda"}, False),
    ],
)
def test_log_probabilities_are_only_taken_over_where_they_are_the_trainers(
    params: dict, inputs: dict, skipped: bool
) -> None:
    assert plan("grpo", params, **inputs).verl["algorithm.rollout_correction.bypass_mode"] is skipped


def test_validation_is_limited_to_the_rows_there_are() -> None:
    made = plan("sft", {"validation": {"rows": 1000}})
    assert made.validation is not None and made.validation.rows == 500
    assert plan("sft", {}, validation_path=None).validation is None


def test_adapters_are_planned_where_asked_for() -> None:
    made = plan("sft", {"lora": {"rank": 4, "target_modules": ["q_proj"]}})
    assert made.adapter
    assert (made.verl["model.lora_rank"], made.verl["model.target_modules"]) == (4, ["q_proj"])
    assert "model.lora_rank" not in plan("sft", {}).verl


@given(number=st.integers(1, 5000), at_most=st.integers(1, 5000))
def test_the_largest_divisor_divides_and_none_is_larger(number: int, at_most: int) -> None:
    found = largest_divisor(number, at_most)
    assert number % found == 0 and found <= max(at_most, 1)
    assert not any(number % larger == 0 for larger in range(found + 1, min(number, at_most) + 1))
