"""Whether a run learns, by the metrics of its steps."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from services.mesh.runs.spool import Problem
from services.rewards import Score
from services.trainer.algorithms import algorithms
from services.trainer.runs.health import QUIET_STEPS, REWARD_STEPS, TRUNCATED_SHARE, ZERO_REWARD_STEPS, RunHealth
from services.trainer.training.tasks import LearnsFrom
from services.trainer.verl.metrics import WEIGHTS_CHANGED, translate
from services.trainer.verl.rollout.agent_loop_report import uniform_groups
from services.trainer.verl.rollout.batch_generation import _StepScores
from services.trainer.verl.verification.weight_changes import bits

SOUND = {"train/grad_norm": 0.5, "train/weights_changed": 1.0, "train/learning_rate": 1e-4}
REWARDED = {**SOUND, "reward/min": 0.0, "reward/max": 1.0, "reward/uniform_groups": 0.5}
REWARDED["rollout/truncated_fraction"] = 0.0
ALL_ZERO = {**SOUND, "reward/min": 0.0, "reward/max": 0.0, "reward/uniform_groups": 1.0}
ALL_ONE = {**SOUND, "reward/min": 1.0, "reward/max": 1.0, "reward/uniform_groups": 1.0}
# Groups differ from each other, their answers do not: every advantage is 0.
UNIFORM = {**SOUND, "train/grad_norm": 0.0, "reward/min": 0.0, "reward/max": 1.0, "reward/uniform_groups": 1.0}


def run(steps: list[Mapping[str, float]], learns_from: LearnsFrom = "gradient") -> tuple[RunHealth, list[Problem]]:
    health = RunHealth(learns_from)
    return health, [problem for step, values in enumerate(steps, 1) for problem in health.step(step, values)]


@pytest.mark.parametrize("learns_from", ["gradient", "groups", "rewards"])
def test_a_sound_run_has_no_warning_and_has_learnt(learns_from: LearnsFrom) -> None:
    health, problems = run([REWARDED] * 10, learns_from)
    assert problems == [] and health.nothing_learnt() is None


@pytest.mark.parametrize(
    ("faulty", "learns_from", "reason", "patience"),
    [
        ({**SOUND, "train/grad_norm": 0.0}, "gradient", "GRADIENT_ZERO", QUIET_STEPS),
        ({**SOUND, "train/grad_norm": float("nan")}, "gradient", "GRADIENT_NOT_FINITE", 1),
        ({**SOUND, "train/weights_changed": 0.0}, "gradient", "WEIGHTS_UNCHANGED", QUIET_STEPS),
        (UNIFORM, "groups", "REWARDS_UNIFORM", QUIET_STEPS),
        (ALL_ONE, "groups", "REWARDS_UNIFORM", QUIET_STEPS),
        (ALL_ONE, "rewards", "REWARDS_UNIFORM", QUIET_STEPS),
        (ALL_ZERO, "groups", "REWARD_ZERO", ZERO_REWARD_STEPS),
        ({**REWARDED, "rollout/truncated_fraction": TRUNCATED_SHARE + 0.1}, "groups", "ANSWERS_TRUNCATED", QUIET_STEPS),
    ],
)
def test_a_fault_is_told_once_it_has_lasted_then_counted_and_again_after_a_sound_step(
    faulty: Mapping[str, float], learns_from: LearnsFrom, reason: str, patience: int
) -> None:
    _, problems = run([*[REWARDED] * 4, *[faulty] * (patience - 1), REWARDED], learns_from)
    assert len(problems) == (patience - 1 if patience == 1 else 0), "so long it may be chance"
    _, problems = run([*[REWARDED] * 4, *[faulty] * (patience + 2)], learns_from)
    assert {problem.reason for problem in problems} == {reason}, "what follows from it is not told beside it"
    assert [(p.first_step, p.step, p.count) for p in problems] == [
        (5, patience + 4, patience),
        (patience + 5, patience + 5, 1),
        (patience + 6, patience + 6, 1),
    ]
    assert all(problem.remedy and f"5 to {problem.step}" in problem.message for problem in problems[1:])
    _, problems = run([*[faulty] * patience, REWARDED, *[faulty] * patience], learns_from)
    assert [problem.count for problem in problems] == [patience, patience]


def test_steps_that_are_all_right_and_all_wrong_in_turn_have_nothing_to_learn_from() -> None:
    zero, one = ({**step, "train/grad_norm": 0.0} for step in (ALL_ZERO, ALL_ONE))
    health, problems = run([one, zero] * 3, "groups")
    assert [(problem.reason, problem.count) for problem in problems] == [("REWARDS_UNIFORM", QUIET_STEPS)]
    assert "in 3 steps, 1 to 5" in problems[0].message
    found = health.nothing_learnt()
    assert found is not None and "no prompt had answers of different reward" in found.message, "not that all were 0"


def test_a_warm_up_that_begins_at_a_learning_rate_of_zero_is_sound() -> None:
    still = {**SOUND, "train/weights_changed": 0.0, "train/learning_rate": 0.0}
    health, problems = run([still, SOUND, SOUND])
    assert problems == [] and health.nothing_learnt() is None


@pytest.mark.parametrize(
    ("steps", "learns_from", "why"),
    [
        ([{**SOUND, "train/grad_norm": 0.0}], "gradient", "in any of its 1 steps: the gradient was exactly 0"),
        ([{**SOUND, "train/weights_changed": 0.0}] * 2, "gradient", "no weight changed"),
        ([{**SOUND, "train/grad_norm": float("inf")}] * 2, "gradient", "not finite"),
        ([UNIFORM] * REWARD_STEPS, "groups", "no prompt had answers of different reward"),
        # A gradient of the KL or the entropy alone.
        ([ALL_ONE] * REWARD_STEPS, "groups", "no prompt had answers of different reward"),
        ([ALL_ONE] * REWARD_STEPS, "rewards", "all answers had the same reward"),
        ([ALL_ZERO] * REWARD_STEPS, "groups", "every answer had the reward 0"),
    ],
)
def test_a_run_in_which_nothing_was_learnt_says_so_with_the_cause(
    steps: list[Mapping[str, float]], learns_from: LearnsFrom, why: str
) -> None:
    found = run(steps, learns_from)[0].nothing_learnt()
    assert found is not None and why in found.message and found.remedy and found.certain
    health, _ = run([REWARDED, *steps], learns_from)
    assert health.nothing_learnt() is None, "it learnt once"
    health = RunHealth(learns_from)
    health.assume_learnt()
    for step, values in enumerate(steps, 1):
        health.step(step, values)
    assert health.nothing_learnt() is None, "it learnt before"


def test_few_answers_that_are_all_alike_are_chance_and_steps_of_a_critic_alone_say_nothing() -> None:
    found = run([ALL_ZERO] * (REWARD_STEPS - 1), "groups")[0].nothing_learnt()
    assert found is not None and not found.certain
    health, problems = run([{"critic/grad_norm": 0.5, "reward/min": 0.0, "reward/max": 1.0}] * 9, "rewards")
    assert problems == [] and health.nothing_learnt() is None


def test_what_an_algorithm_learns_from() -> None:
    from services.trainer.training.launch_plan import PlanInputs

    nowhere = dict.fromkeys(
        ("job", "job_uid", "ray_address", "ray_namespace", "model_path", "train_path", "work_dir"), ""
    )
    inputs = PlanInputs(
        **nowhere, attempt=1, device="cpu", slots=1, train_rows=1024, validation_path=None, validation_rows=0,
        resume_from=None,
    )  # fmt: skip
    found = {name: entry.plan(entry.Params(), inputs).task.learns_from for name, entry in algorithms.items()}
    assert found == {
        **dict.fromkeys(("sft", "dpo", "reward_model"), "gradient"),
        **dict.fromkeys(("grpo", "dr_grpo", "dapo", "gspo", "rloo"), "groups"),
        **dict.fromkeys(("ppo", "reinforce_plus_plus"), "rewards"),
    }


def test_prompts_whose_answers_all_had_the_same_reward_are_counted_the_same_by_both_engines() -> None:
    scores = [1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.5, 0.5]
    ours = _StepScores(step=1)
    ours.add([Score(score) for score in scores[:4]], group=2)
    ours.add([Score(score) for score in scores[4:]], group=2)
    keys = [f"p{index // 2}_{index % 2}_0" for index in range(8)]
    assert uniform_groups(keys, scores) == {"reward/uniform_groups": 0.75}
    assert ours.uniform * 2 / ours.answers == 0.75
    assert uniform_groups(["a_0_0", "b_0_0"], [1.0, 0.0]) == {}, "one answer a prompt is no group"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_any_change_of_a_weight_changes_the_sum_of_the_bits(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    # Odd sizes, a view that starts in the middle of a word, a shard without elements.
    tensors = [torch.randn(7, 3).to(dtype), torch.randn(33).to(dtype)[1:], torch.empty(0, dtype=dtype)]
    before = bits(tensors)
    assert bits([tensor.clone() for tensor in tensors]) == before
    for tensor in tensors[:2]:
        for position in (0, -1):
            flat = tensor.view(-1)
            kept = flat[position].clone()
            flat[position] = (
                torch.nextafter(kept.float(), torch.tensor(9.0)).to(dtype) if dtype == torch.float32 else kept * 2
            )
            assert bits(tensors) != before
            flat[position] = kept
    assert bits(tensors) == before


def test_the_change_of_weights_is_a_metric_whatever_verl_makes_of_it() -> None:
    assert translate({WEIGHTS_CHANGED: [[0.0], [1.0]]}) == {"train/weights_changed": 1.0}
    assert translate({WEIGHTS_CHANGED: [0.0]}) == {"train/weights_changed": 0.0}
    assert translate({WEIGHTS_CHANGED: 0.0}) == {"train/weights_changed": 0.0}
    assert translate({f"actor/{WEIGHTS_CHANGED}": 0.5}) == {"train/weights_changed": 0.5}
