"""GRPO by verl on Ray: two runs in one Ray, and what is left when a runner is killed."""

from __future__ import annotations

import time

import pytest

from services.mesh.runs.spool import End, Metrics, Phase, SampleBatch
from services.trainer.runs.records import Checkpoint
from tests.fix_runner import AttemptMaker, PrivateRay

pytestmark = pytest.mark.slow
PARAMS = {
    "learning_rate": 1e-3,
    "prompts_per_step": 4,
    "samples_per_prompt": 4,
    "max_prompt_length": 16,
    "max_response_length": 8,
}


def trained(records: list) -> dict[int, dict[str, float]]:
    return {r.step: r.values for r in records if isinstance(r, Metrics) and "reward/mean" in r.values}


def test_two_runs_side_by_side_and_one_killed(attempts: AttemptMaker, private_ray: PrivateRay) -> None:
    """The killed run leaves no process and no slot; the other one does not notice."""
    doomed = attempts("doomed", "grpo", steps=100_000, **PARAMS)
    whole = attempts("whole", "grpo", steps=4, save_every_steps=2, **PARAMS)
    doomed_process, whole_process = doomed.start(), whole.start()
    doomed.wait_for(lambda record: isinstance(record, Metrics) and record.step == 2)
    whole.wait_for(lambda record: isinstance(record, Metrics) and record.step == 1)
    # Otherwise the wait below would prove nothing.
    assert private_ray.job_processes()
    doomed_process.kill()
    doomed_process.wait()
    assert whole_process.wait(timeout=400) == 0

    records = whole.records()
    assert isinstance(records[-1], End) and records[-1].outcome == "succeeded", records[-1]
    assert list(trained(records)) == [1, 2, 3, 4]
    step = trained(records)[4]
    assert step["actor/entropy"] > 0 and step["rollout/prompt_length/mean"] == 8
    # One update a step on what was just sampled: the policy is the one that sampled, to rounding.
    assert abs(step["actor/kl_to_rollout"]) < 1e-5
    assert {(r.step, r.state) for r in records if isinstance(r, Checkpoint)} == {
        (step, state) for step in (2, 4) for state in ("verifying", "ready")
    }
    assert {r.step for r in records if isinstance(r, SampleBatch) and r.split == "rollout"} == {1, 2, 3, 4}
    assert not any(isinstance(record, End) for record in doomed.records())

    deadline = time.monotonic() + 60
    while private_ray.job_processes() and time.monotonic() < deadline:
        time.sleep(0.5)
    assert private_ray.job_processes() == []


def test_the_reward_is_learnt(attempts: AttemptMaker) -> None:
    """An untrained model has a 1 in a third of its answers; when that alone is rewarded it soon has one in most."""
    params = {**PARAMS, "learning_rate": 3e-3, "prompts_per_step": 8, "samples_per_prompt": 8}
    reward = {"name": "regex", "params": {"pattern": "1", "mode": "search"}}
    records = attempts("learning", "grpo", steps=16, reward=reward, **params).run()
    assert isinstance(records[-1], End) and records[-1].outcome == "succeeded", records[-1]
    means = [values["reward/mean"] for values in trained(records).values()]
    assert len(means) == 16
    assert sum(means[:3]) / 3 < 0.6 < 0.8 < sum(means[-3:]) / 3
    checked = [r.values for r in records if isinstance(r, Metrics) and "validation/score/mean" in r.values]
    assert checked[-1]["validation/score/mean"] > checked[0]["validation/score/mean"]


def test_a_run_waits_for_slots_and_can_be_stopped_meanwhile(attempts: AttemptMaker) -> None:
    holder = attempts("holder", "grpo", steps=100_000, **PARAMS)
    holding = attempts.of(holder.folder, holder.plan, slots=2)
    process = holding.start()
    holding.wait_for(lambda record: isinstance(record, Phase) and record.phase == "loading")
    waiter = attempts("waiter", "grpo", steps=2, **PARAMS)
    waiting = waiter.start()
    waiter.wait_for(lambda record: isinstance(record, Phase) and record.phase == "waiting_for_slots")
    waiting.terminate()
    assert waiting.wait(timeout=60) == 0
    end = waiter.records()[-1]
    assert isinstance(end, End) and (end.outcome, end.step) == ("stopped", 0)
    process.kill()
    process.wait()
