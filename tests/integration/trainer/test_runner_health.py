"""Runs that do not train, and what they say of it; and how little a run prints. Real Ray and verl."""

from __future__ import annotations

import json
from dataclasses import replace

from services.mesh.runs.spool import End, Metrics, Problem, Record
from services.trainer.runs.health import QUIET_STEPS, REWARD_STEPS
from services.trainer.runs.records import Checkpoint
from tests.fix_runner import Attempt, AttemptMaker, write_rows


def problems(records: list[Record]) -> dict[str, Problem]:
    return {record.reason: record for record in records if isinstance(record, Problem)}


def printed(attempt: Attempt) -> list[str]:
    """Of a run without a fault nothing but its steps."""
    return (attempt.folder / "output.log").read_text().splitlines()


def test_an_sft_run_that_changes_no_weight_fails_and_says_what_it_left_out(attempts: AttemptMaker) -> None:
    attempt = attempts(
        "still", "sft", steps=QUIET_STEPS, batch_size=8, max_length=20, learning_rate=1e-60, warmup_ratio=0.0
    )
    rows = [json.loads(line) for line in (attempt.folder / "train.jsonl").read_text().splitlines()]
    for row in rows[:16]:
        row["messages"][0]["content"] *= 3
    write_rows(attempt.folder / "train.jsonl", rows)
    assert attempt.plan.validation is not None
    too_long = replace(attempt.plan.validation, max_new_tokens=1000)
    records = attempts.of(attempt.folder, attempt.plan, validation=too_long).run()
    end = records[-1]
    assert isinstance(end, End) and (end.outcome, end.reason) == ("failed", "NOTHING_LEARNT")
    assert "in any of its 3 steps: no weight changed" in end.message and "learning_rate" in end.remedy
    found = problems(records)
    assert found.keys() == {"WEIGHTS_UNCHANGED", "ROWS_LEFT_OUT", "VALIDATION_SKIPPED"}
    unchanged = found["WEIGHTS_UNCHANGED"]
    assert (unchanged.first_step, unchanged.step, unchanged.count) == (1, QUIET_STEPS, QUIET_STEPS)
    assert "learning rate" in unchanged.message
    assert "16 of 64 training rows" in found["ROWS_LEFT_OUT"].message and found["ROWS_LEFT_OUT"].severity == "warning"
    assert "16 of 16 validation rows" in found["VALIDATION_SKIPPED"].message
    assert [r.state for r in records if isinstance(r, Checkpoint)] == ["verifying", "ready"], "what there is is kept"
    lines = printed(attempt)
    # A line for each step, and as many again for whatever comes up.
    assert len(lines) <= 2 * QUIET_STEPS and lines[0].startswith("step 1 of 3  train/loss "), lines


def test_a_grpo_run_whose_rewards_never_differ_fails_whatever_its_gradient(attempts: AttemptMaker) -> None:
    """A bonus on the entropy gives a gradient that changes weights: nothing is learnt from it."""
    attempt = attempts(
        "alike",
        "grpo",
        steps=REWARD_STEPS,
        prompts_per_step=8,
        samples_per_prompt=2,
        max_prompt_length=12,
        max_response_length=2,
        entropy_coefficient=0.01,
        learning_rate=1e-3,
        reward={"name": "regex", "params": {"pattern": ".*"}},
    )
    records = attempt.run()
    end = records[-1]
    assert isinstance(end, End) and (end.outcome, end.reason) == ("failed", "NOTHING_LEARNT"), end.traceback
    assert "no prompt had answers of different reward" in end.message and "rlhf job samples" in end.remedy
    assert problems(records).keys() == {"REWARDS_UNIFORM", "ANSWERS_TRUNCATED"}
    steps = [record.values for record in records if isinstance(record, Metrics) and "train/grad_norm" in record.values]
    assert all(values["train/grad_norm"] > 0 and values["train/weights_changed"] == 1 for values in steps)
    assert [values["reward/uniform_groups"] for values in steps] == [1.0] * REWARD_STEPS
    lines = printed(attempt)
    assert len(lines) <= 2 * REWARD_STEPS and lines[0].startswith("step 1 of 10  train/loss "), lines
