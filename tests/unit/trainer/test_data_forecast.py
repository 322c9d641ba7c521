"""Rows kept, tokens and steps are those of a run; what it would die or suffer of is told before, with the remedy."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import Any

import pytest

from services import rewards
from services.mesh.errors import Violation
from services.mesh.validation.params import parse, read
from services.mesh.validation.partial import UnknownField
from services.trainer.algorithms import algorithms
from services.trainer.algorithms.common_params import LoraSettings
from services.trainer.training import data_forecast
from services.trainer.training.data_forecast import Bound, keeping
from services.trainer.training.launch_plan import LaunchPlan, PlanInputs
from services.trainer.training.token_lengths import Lengths

CONTEXT = 512
# 60 rows of 100 tokens, 40 of 300.
LENGTHS = Lengths([100] * 60 + [300] * 40)
WHERE = dict.fromkeys(("job", "job_uid", "ray_address", "ray_namespace", "model_path", "train_path", "work_dir"), "")


def planned(algorithm: str, rows: int, validation_rows: int = 0, **params: Any) -> tuple[LaunchPlan, Bound]:
    entry = algorithms.get(algorithm)
    parsed = parse(entry.Params, params).fitted(CONTEXT)
    inputs = PlanInputs(
        **WHERE,
        attempt=1,
        device="cpu",
        slots=1,
        train_rows=rows,
        validation_path="held-out" if validation_rows else None,
        validation_rows=validation_rows,
        resume_from=None,
    )
    plan = entry.plan(parsed, inputs)
    return plan, Bound.of(plan, parsed, CONTEXT)


def test_rows_tokens_and_steps_of_a_pass() -> None:
    plan, bound = planned("sft", 100, batch_size=10, max_length=200)
    found = data_forecast.forecast(plan, bound, 100, LENGTHS)
    assert (found.row_count, found.read_row_count, found.sampled) == (100, 100, False)
    assert (found.kept_row_count, found.left_out) == (60, {"max_length": 40})
    assert found.tokens == data_forecast.TokenQuantiles(median=100, p95=300, max=300)
    assert (found.token_count, found.step_count) == (6000, 10)
    # verl goes on with the rows that are kept until the steps are done.
    assert found.epoch_count == pytest.approx(10 * 10 / 60)
    [warning] = data_forecast.warnings(found, bound, LENGTHS)
    assert warning.reason == "ROWS_LEFT_OUT"
    assert warning.message.startswith("40 of 100 training rows (40%) have more than max_length (200) tokens")
    assert "10 steps are 1.67 passes" in warning.message
    assert warning.remedy == "set max_length to 300 to keep 95 % of them"
    assert data_forecast.violations(found, bound, LENGTHS) == []


def test_a_sample_is_scaled_to_the_whole_and_says_so() -> None:
    plan, bound = planned("grpo", 10_000, prompts_per_step=10, max_prompt_length=200)
    lengths = Lengths(LENGTHS.tokens, whole=False)
    found = data_forecast.forecast(plan, bound, 10_000, lengths)
    assert (found.sampled, found.read_row_count, found.kept_row_count) == (True, 100, 6000)
    assert (found.left_out, found.token_count) == ({"max_prompt_length": 4000}, 600_000)
    [warning] = data_forecast.warnings(found, bound, lengths)
    assert warning.message.startswith("about 4,000 of 10,000 training rows (40%)")


@pytest.mark.parametrize(
    ("params", "field", "said"),
    [
        ({"batch_size": 10, "max_length": 50}, "params.max_length", "all 100 rows have more than 50 tokens"),
        (
            {"batch_size": 64, "max_length": 200},
            "params.batch_size",
            "a step takes 64 rows, and 60 of 100 have at most",
        ),
    ],
)
def test_a_run_that_would_die_of_its_lengths_is_refused(params: dict[str, Any], field: str, said: str) -> None:
    plan, bound = planned("sft", 100, **params)
    found = data_forecast.forecast(plan, bound, 100, LENGTHS)
    [violation] = data_forecast.violations(found, bound, LENGTHS)
    assert violation.field == field
    assert said in violation.description and "set max_length to 300 to keep 95 % of them" in violation.description


@pytest.mark.parametrize(
    ("lengths", "key"),
    [
        (Lengths([300] * 64, whole=False), "max_length"),
        (Lengths([], refused=64, refusal="no", whole=False), "chat_template"),
    ],
)
def test_what_only_a_sample_says_is_a_warning(lengths: Lengths, key: str) -> None:
    plan, bound = planned("sft", 10_000, batch_size=10, max_length=200)
    found = data_forecast.forecast(plan, bound, 10_000, lengths)
    assert (found.kept_row_count, found.left_out) == (0, {key: 10_000})
    assert data_forecast.violations(found, bound, lengths) == []
    [warning] = data_forecast.warnings(found, bound, lengths)
    assert warning.key == key and "of those that were read none is kept" in warning.message


def test_what_the_model_has_no_room_for_is_no_remedy() -> None:
    plan, bound = planned("grpo", 100, prompts_per_step=10, max_prompt_length=50, max_response_length=400)
    found = data_forecast.forecast(plan, bound, 100, LENGTHS)
    [violation] = data_forecast.violations(found, bound, LENGTHS)
    # 512 of context less 400 of the answer.
    assert "room for max_prompt_length 112, which keeps 60%" in violation.description


def test_rows_that_the_chat_template_refuses_are_told_with_its_words() -> None:
    plan, bound = planned("sft", 100, batch_size=10)
    lengths = Lengths([100] * 90, refused=10, refusal="no system role")
    found = data_forecast.forecast(plan, bound, 100, lengths)
    assert (found.kept_row_count, found.left_out) == (90, {"chat_template": 10})
    [warning] = data_forecast.warnings(found, bound, lengths)
    assert "(10%) are refused by the model's chat template (no system role) and are left out" in warning.message
    none = Lengths([], refused=100, refusal="no system role")
    [violation] = data_forecast.violations(data_forecast.forecast(plan, bound, 100, none), bound, none)
    assert violation == Violation("dataset_version", violation.description)
    assert "refuses every row: no system role" in violation.description


def test_validation_rows_that_cannot_be_answered_are_told_with_what_helps() -> None:
    plan, bound = planned("sft", 100, 100, batch_size=10, validation={"max_new_tokens": 400, "rows": 100})
    found, [warning] = data_forecast.with_validation(
        data_forecast.forecast(plan, bound, 100, LENGTHS), plan, LENGTHS, CONTEXT
    )
    assert (found.validation_row_count, found.validation_left_out) == (100, {"context": 40})
    assert warning.reason == "VALIDATION_ROWS_LEFT_OUT"
    assert warning.message.startswith("40 of 100 validation rows are not answered")
    assert warning.remedy == "set validation.max_new_tokens to 212 to have 95 % of them answered"
    fits = replace(plan, validation=replace(plan.validation, max_new_tokens=200))  # type: ignore[type-var]
    assert data_forecast.with_validation(found, fits, LENGTHS, CONTEXT)[1] == []


def test_pairs_of_a_reward_models_validation_are_bounded_by_max_length() -> None:
    plan, bound = planned("reward_model", 100, 100, batch_size=10, max_length=200)
    found, [warning] = data_forecast.with_validation(
        data_forecast.forecast(plan, bound, 100, LENGTHS), plan, LENGTHS, CONTEXT
    )
    assert found.validation_left_out == {"max_length": 40}
    assert "40 of 100 validation rows are not judged" in warning.message


def test_keeping_is_the_least_length_that_does() -> None:
    assert [keeping(range(1, 101), share) for share in (0.5, 0.95, 1.0)] == [50, 95, 100]
    assert keeping([7], 0.95) == 7


@pytest.mark.parametrize(
    ("context", "expected"), [(None, (2048, 512, 512)), (8192, (2048, 512, 512)), (300, (300, 150, 150))]
)
def test_lengths_that_are_null_are_what_the_model_has(context: int | None, expected: tuple[int, ...]) -> None:
    sft, grpo = algorithms.get("sft").Params().fitted(context), algorithms.get("grpo").Params().fitted(context)
    assert (sft.max_length, grpo.max_prompt_length, grpo.max_response_length) == expected


def test_a_length_that_is_given_stays_and_the_other_side_takes_the_rest() -> None:
    params = algorithms.get("grpo").Params
    assert params(max_response_length=250).fitted(300).max_prompt_length == 50
    assert params(max_prompt_length=250).fitted(300).max_response_length == 50
    given = params(max_prompt_length=100, max_response_length=100).fitted(300)
    assert (given.max_prompt_length, given.max_response_length) == (100, 100)


@pytest.mark.parametrize(
    ("algorithm", "other", "here"),
    [
        ("grpo", "batch_size", "prompts_per_step"),
        ("ppo", "max_completion_length", "max_response_length"),
        ("sft", "max_seq_length", "max_length"),
        ("dpo", "prompts_per_step", "batch_size"),
        ("sft", "lr", "learning_rate"),
        ("reward_model", "num_train_epochs", "epochs"),
        ("grpo", "bf16", "precision"),
        ("grpo", "gradient_accumulation_steps", "prompts_per_step"),
        ("dpo", "lora_r", "lora.rank"),
        ("dpo", "beta_", "beta"),
    ],
)
def test_what_others_call_a_parameter_is_refused_with_its_name_here(algorithm: str, other: str, here: str) -> None:
    _, [violation] = read(algorithms.get(algorithm).Params, {other: 8})
    assert violation == Violation(f"params.{other}", f"unknown parameter; did you mean {here}?")


def test_a_name_of_other_tools_leaves_open_only_the_parameter_that_it_means() -> None:
    params, _ = read(algorithms.get("sft").Params, {"lora_r": 8, "lora": {"alpha": 4}, "steps": 3})
    assert (params.steps, params.lora.alpha) == (3, 4)
    with pytest.raises(UnknownField):
        _ = params.lora.rank


def test_every_parameter_that_another_name_leads_to_is_one_of_some_algorithm() -> None:
    known: set[str] = set()
    for _, each in algorithms.items():
        for field in dataclasses.fields(each.Params):
            inner = LoraSettings if field.name == "lora" else type(getattr(each.Params(), field.name))
            known.add(field.name)
            if dataclasses.is_dataclass(inner):
                known |= {f"{field.name}.{part.name}" for part in dataclasses.fields(inner)}
    assert {here for _, each in algorithms.items() for here in each.Params.other_names.values()} <= known


GSM8K = ["Ann has 3 · 24 = 72 apples.\nSo she has 72.\n#### 72", "It is 1,000.\n#### 1,000"]


@pytest.mark.parametrize(
    ("name", "params", "answers", "said", "remedy"),
    [
        ("exact", {}, GSM8K, "2 of 2 answers are whole solutions", "numeric"),
        ("exact", {}, ["yes.\nbecause"], "whole solutions", "keep the final answer alone"),
        ("exact", {}, ["72", "no"], "", ""),
        ("exact", {"look_in": "after_marker"}, ["Answer: 72"], "can stand after 'Answer:'", "keep the final"),
        ("exact", {"strip": False}, [" 72"], "white space", "strip"),
        ("numeric", {}, GSM8K, "", ""),
        ("numeric", {}, ["72"] * 99 + ["yes"], "", ""),
        ("regex", {"pattern": r"<(?P<answer>[0-9]+)>"}, ["72"] * 99 + ["yes"], "", ""),
        ("math", {}, ["72"] * 99 + ["#### 72"], "", ""),
        ("exact", {"strip": False}, ["72"] * 99 + ["72 "], "", ""),
        ("numeric", {}, ["72", "yes"], "1 of 2 answers hold no number ('yes')", "exact or math"),
        ("math", {}, GSM8K, "end in '#### …'", "numeric"),
        ("math", {}, [r"\frac{1}{2}"], "", ""),
        ("regex", {"pattern": r"<(?P<answer>[0-9(]+)>"}, ["72", "7.5"], "('7.5') are none that the group", "widen"),
        ("regex", {"pattern": r"[0-9]+"}, ["yes"], "", ""),
        ("weighted", {"components": [{"name": "format_tags"}, {"name": "exact"}]}, GSM8K, "whole solutions", "numeric"),
    ],
)
def test_a_reward_that_does_not_fit_the_answers_is_told_with_one_that_does(
    name: str, params: dict[str, Any], answers: list[str], said: str, remedy: str
) -> None:
    found = rewards.misfit(name, params, answers)
    assert (found is None) == (said == "")
    if found is not None:
        assert said in found.message and remedy in found.remedy


def test_thoughts_that_the_template_does_not_write_are_told_before_the_start() -> None:
    plan, bound = planned("sft", 300, batch_size=10, max_length=400)
    sample = Lengths(LENGTHS.tokens, silenced=25, whole=False)
    [warning] = data_forecast.warnings(data_forecast.forecast(plan, bound, 300, sample), bound, sample)
    assert warning.reason == "ROWS_CHANGED"
    assert warning.message.startswith("about 75 of 300 training rows have reasoning_content, which is not trained")
    assert "<think>" in warning.remedy
