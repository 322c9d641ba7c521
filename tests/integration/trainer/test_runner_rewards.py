"""Rewards in real runs: a sum with a model in it and a held-out one; a judge that is away; one that breaks."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from services.mesh.runs.spool import End, Metrics, Phase, Problem, Record, SampleBatch
from services.rewards.spec import RewardSite
from services.trainer.runs.records import Checkpoint
from tests.fix_judge import Answer, FakeJudge, chat, start
from tests.fix_reward_model import tiny_reward_model as tiny_reward_model
from tests.fix_runner import RUNNER, Attempt, AttemptMaker

pytestmark = pytest.mark.slow
PARAMS = {
    "learning_rate": 1e-3,
    "prompts_per_step": 4,
    "samples_per_prompt": 4,
    "max_prompt_length": 16,
    "max_response_length": 8,
}
# As with vLLM.
AGENT_LOOP = (str(Path(__file__).with_name("agent_loop_run.py")),)
JUDGE = "projects/default/models/judge"
SUM = {
    "name": "weighted",
    "params": {
        "components": [
            {"name": "regex", "params": {"pattern": "1", "mode": "search"}, "weight": 2},
            {"name": "model", "params": {"model": JUDGE}, "weight": 0.5},
            {"name": "length", "params": {"longest": 8}, "label": "short"},
        ]
    },
}


def steps(records: list[Record]) -> dict[int, dict[str, float]]:
    return {r.step: r.values for r in records if isinstance(r, Metrics) and "reward/mean" in r.values}


def end_of(records: list[Record]) -> End:
    assert isinstance(records[-1], End), records[-1]
    return records[-1]


def site_of(attempts: AttemptMaker, made: Attempt, **site: Any) -> Attempt:
    return attempts.of(made.folder, made.plan, reward_site=RewardSite(**site))


@pytest.mark.parametrize("program", [RUNNER, AGENT_LOOP], ids=["in batches", "by verl's agent loop"])
def test_a_sum_and_a_held_out_reward_are_series(
    attempts: AttemptMaker, tiny_reward_model: Path, program: tuple[str, ...]
) -> None:
    """Of the held-out reward nothing is trained; what is trained is the sum of what is shown."""
    held_out = {"name": "weighted", "params": {"components": [{"name": "exact"}, {"name": "repetition"}]}}
    made = attempts("sum", "grpo", steps=2, reward=SUM, held_out_reward=held_out, **PARAMS)
    attempt = site_of(attempts, made, models={JUDGE: str(tiny_reward_model)})
    attempt.program = program
    records = attempt.run()
    assert end_of(records).outcome == "succeeded", end_of(records)
    assert list(steps(records)) == [1, 2]
    shown = {r.step: r.samples for r in records if isinstance(r, SampleBatch) and r.split == "rollout"}
    assert list(shown) == [1, 2]
    for sample in (sample for samples in shown.values() for sample in samples):
        parts = sample.parts
        assert sample.score == pytest.approx(2 * parts["regex"] + 0.5 * parts["model"] + parts["short"], abs=1e-5)
        assert len(sample.prompt) == 6 and sample.expected == "".join(sorted(sample.prompt))
        assert bool(parts["regex"]) == ("1" in sample.completion)
    for values in steps(records).values():
        components = [values[f"reward/{name}/mean"] for name in ("regex", "model", "short")]
        assert values["reward/mean"] == pytest.approx(2 * components[0] + 0.5 * components[1] + components[2], abs=1e-5)
        assert values["reward/model/output/mean"] == pytest.approx(components[1])
        assert {"reward/regex/format/mean", "reward/short/length/mean", "reward/short/over/mean"} <= set(values)
        held = {name: value for name, value in values.items() if name.startswith("held_out/")}
        assert set(held) == {
            "held_out/mean", "held_out/exact/mean", "held_out/exact/correct/mean", "held_out/exact/format/mean",
            "held_out/repetition/mean", "held_out/repetition/repeated/mean",
        }  # fmt: skip
        assert values["held_out/mean"] == pytest.approx(
            values["held_out/exact/mean"] + values["held_out/repetition/mean"]
        )
    validated = [r.values for r in records if isinstance(r, Metrics) and "validation/score/mean" in r.values]
    assert {"validation/regex/mean", "validation/model/output/mean"} <= set(validated[-1])


def test_a_judge_that_is_away_is_waited_for_and_the_run_can_be_stopped(attempts: AttemptMaker) -> None:
    judge = FakeJudge()
    server = start(judge)
    port, url = judge.port, judge.url
    server.shutdown()
    server.server_close()
    judge.answer = lambda body: chat({"score": 10 if "1" in body["messages"][1]["content"][-40:] else 0})
    reward = {"name": "api", "params": {"url": url, "model": "m", "rubric": "a one", "retries": 0, "concurrency": 16}}
    made = attempts("away", "grpo", steps=100_000, reward=reward, **PARAMS)
    attempt = site_of(attempts, made, outbound_allow=("loopback",))
    process = attempt.start()
    attempt.wait_for(lambda record: isinstance(record, Phase) and record.phase == "waiting_for_reward")
    assert not steps(attempt.records())
    server = start(judge, port)
    try:
        attempt.wait_for(lambda record: isinstance(record, Metrics) and record.step == 2)
        assert any(isinstance(r, Problem) and "can't be reached" in r.message for r in attempt.records())
        phases = [r.phase for r in attempt.records() if isinstance(r, Phase)]
        assert "training" in phases[phases.index("waiting_for_reward") :]
        assert all(0 <= values["reward/judged/mean"] <= 10 for values in steps(attempt.records()).values())
        judge.answer = lambda body: Answer(status=503)
        deadline = time.monotonic() + 120
        while [r.phase for r in attempt.records() if isinstance(r, Phase)][-1] != "waiting_for_reward":
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.terminate()
        assert process.wait(timeout=120) == 0
    finally:
        server.shutdown()
        server.server_close()
    records = attempt.records()
    end = end_of(records)
    assert end.outcome == "stopped" and end.step >= 2, end
    # What had been learnt is kept.
    assert {r.step for r in records if isinstance(r, Checkpoint) and r.state == "ready"} == {end.step}


def test_verls_agent_loop_asks_no_other_prompt_for_one_that_was_not_judged(attempts: AttemptMaker) -> None:
    source = "def score(samples):\n    assert '1' not in samples[0]['completion'], 'no ones'\n    return [0.0]\n"
    made = attempts("raises", "grpo", steps=50, reward={"name": "custom", "params": {"source": source}}, **PARAMS)
    attempt = site_of(attempts, made, custom_code="allow")
    attempt.program = AGENT_LOOP
    end = end_of(attempt.run())
    assert (end.outcome, end.reason) == ("failed", "REWARD_FAILED")
    assert "AssertionError: no ones" in end.message and "rlhf reward test" in end.remedy


def test_a_reward_that_raises_ends_the_run_naming_the_sample(attempts: AttemptMaker) -> None:
    source = (
        "calls = 0\ndef score(samples):\n    global calls\n    calls += 1\n    assert calls < 2, 'out of order'\n"
        "    return [0.5 * i for i in range(len(samples))]\n"
    )
    made = attempts("raises", "grpo", steps=5, reward={"name": "custom", "params": {"source": source}}, **PARAMS)
    records = site_of(attempts, made, custom_code="allow").run()
    end = end_of(records)
    assert (end.outcome, end.reason, end.step) == ("failed", "REWARD_FAILED", 1)
    assert (
        end.message.startswith("reward 'custom', sample 0 (") and "AssertionError: out of order (line 5)" in end.message
    )
    assert "rlhf reward test" in end.remedy
    [kept] = [r for r in records if isinstance(r, Checkpoint) and r.state == "ready"]
    assert kept.step == 1
    # The prompts of the step that failed are still to come.
    position = json.loads((Path(kept.training_state_path) / "global_step_1" / "sampler.json").read_text())
    assert position["rows"] >= 2 * PARAMS["prompts_per_step"] and position["batches"] == 1
