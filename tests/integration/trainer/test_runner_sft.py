"""Supervised fine-tuning by verl on Ray, as the trainer worker starts it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from services.mesh.artifacts import Manifest
from services.mesh.runs.files import CONTROL_FILE, RUNNER_FILE
from services.mesh.runs.spool import End, Metrics, Phase, Problem, SampleBatch
from services.trainer.runs.records import Checkpoint
from services.trainer.training import launch_plan as plans
from tests.fix_runner import AttemptMaker, trained_rows_as_held_out

pytestmark = pytest.mark.slow
PARAMS = {"learning_rate": 2e-3, "batch_size": 32, "max_length": 32, "scheduler": "constant", "warmup_ratio": 0.0}


def losses(records: list) -> dict[int, float]:
    found = [(r.step, r.values["train/loss"]) for r in records if isinstance(r, Metrics) and "train/loss" in r.values]
    assert len(found) == len({step for step, _ in found}), "a step was reported twice"
    return dict(found)


def test_a_run_and_its_resumption_take_the_same_steps(attempts: AttemptMaker) -> None:
    whole = attempts("whole", "sft", steps=6, save_every_steps=4, **PARAMS)
    records = whole.run()

    assert list(losses(records)) == [1, 2, 3, 4, 5, 6]
    assert losses(records)[6] < losses(records)[1]
    assert isinstance(records[0], Phase) and records[0].phase == "starting"
    assert isinstance(records[-1], End) and records[-1].outcome == "succeeded" and records[-1].step == 6
    states = [(r.step, r.state) for r in records if isinstance(r, Checkpoint)]
    assert sorted(states) == [(4, "ready"), (4, "verifying"), (6, "ready"), (6, "verifying")]
    sampled = {r.step for r in records if isinstance(r, SampleBatch) and r.split == "validation"}
    assert sampled == {0, 4, 6}
    scored = {r.step: r.values for r in records if isinstance(r, Metrics) and "validation/score/count" in r.values}
    assert {step: values["validation/score/count"] for step, values in scored.items()} == {0: 16, 4: 16, 6: 16}
    assert json.loads((whole.folder / RUNNER_FILE).read_text()).keys() == {"pid", "start_ticks"}

    ready = {r.step: r for r in records if isinstance(r, Checkpoint) and r.state == "ready"}
    assert ready[6].manifest_sha256 == Manifest.of_folder(Path(ready[6].path)).sha256
    assert json.loads((Path(ready[6].path) / "config.json").read_text())["dtype"] == "float32"

    # 64 rows are two batches: step 4 ends a pass, where verl by itself finds no rows left.
    point = plans.ResumePoint(4, ready[4].training_state_path)
    resumed = attempts("resumed", "sft", resume_from=point, steps=6, **PARAMS).run()
    assert isinstance(resumed[-1], End) and resumed[-1].outcome == "succeeded"
    assert losses(resumed) == {step: loss for step, loss in losses(records).items() if step > 4}

    # The processes of two slots speak over gloo.
    shared = attempts("shared", "sft", slots=2, steps=3, micro_batch_size=8, **PARAMS).run()
    assert isinstance(shared[-1], End) and shared[-1].outcome == "succeeded", shared[-1]
    assert losses(shared) == pytest.approx({step: losses(records)[step] for step in (1, 2, 3)}, abs=1e-5)


def test_a_stop_ends_within_a_step_and_keeps_the_weights(attempts: AttemptMaker) -> None:
    attempt = attempts("stopped", "sft", steps=100_000, **PARAMS)
    process = attempt.start()
    attempt.wait_for(lambda record: isinstance(record, Metrics) and record.step == 3)
    (attempt.folder / CONTROL_FILE).write_text('{"action":"stop"}')
    asked_at = max(losses(attempt.records()))
    assert process.wait(timeout=120) == 0

    records = attempt.records()
    end = records[-1]
    assert isinstance(end, End) and end.outcome == "stopped" and end.reason == "STOP_REQUESTED"
    # One step may have been under way when the file appeared, and one between the file and the count above.
    assert end.step == max(losses(records)) <= asked_at + 2
    assert [r.state for r in records if isinstance(r, Checkpoint)] == ["verifying", "ready"]


def test_adapters_are_kept_in_peft_form_and_measured_on_held_out_rows(attempts: AttemptMaker) -> None:
    params = {**PARAMS, "batch_size": 16, "validation": {"rows": 17, "max_new_tokens": 8}, "save_every_steps": 1}
    attempt = attempts("adapter", "sft", steps=2, lora={"rank": 4, "alpha": 8}, **params)
    turns = [{"role": "user", "content": "1" * 40}, {"role": "assistant", "content": "1"}]
    trained_rows_as_held_out(attempt, 16, {"messages": turns})
    records = attempt.run()

    assert isinstance(records[-1], End) and records[-1].outcome == "succeeded", records[-1]
    problems = [r.message for r in records if isinstance(r, Problem)]
    assert problems[0] == "1 of 17 training rows are longer than 32 tokens and are left out"
    assert problems[1].startswith(
        "the held-out loss leaves out 1 of 17 validation rows, the first because it is longer"
    )
    ready = {r.step: r for r in records if isinstance(r, Checkpoint) and r.state == "ready"}
    assert {one.kind for one in ready.values()} == {"adapter"}
    files = {path.name for path in Path(ready[2].path).iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= files
    assert "model.safetensors" not in files

    # All 16 rows are a step: verl's loss before its update is the loss that the checkpoint before has on them.
    held_out = {r.step: r.values for r in records if isinstance(r, Metrics) and "validation/loss" in r.values}
    assert list(held_out) == [0, 1, 2]
    for step in (0, 1):
        assert held_out[step]["validation/loss"] == pytest.approx(losses(records)[step + 1], abs=1e-4)
    assert held_out[2]["validation/loss"] < held_out[1]["validation/loss"] < held_out[0]["validation/loss"]
    # Six digits and the end of each answer.
    assert held_out[0]["validation/tokens/count"] == 16 * 7
    assert ready[2].metrics["validation/perplexity"] == pytest.approx(math.exp(held_out[2]["validation/loss"]))
    # Conversations are answered, to be read; no reward fits them unless the job names one.
    answers = [s for r in records if isinstance(r, SampleBatch) and r.step == 2 for s in r.samples]
    assert len(answers) == 16 and all(s.expected and math.isnan(s.score) for s in answers)
    assert "validation/score/mean" not in ready[2].metrics


def test_a_failure_names_its_first_cause(attempts: AttemptMaker) -> None:
    attempt = attempts("failing", "sft", steps=2, **{**PARAMS, "max_length": 8})
    end = attempt.run()[-1]
    assert isinstance(end, End) and end.outcome == "failed"
    assert (end.reason, end.step) == ("NO_TRAINABLE_ROWS", 0)
    assert "NoRowsError: all 64 rows are longer than 8 tokens" in end.message
    assert "max_length" in end.remedy and "Traceback" in end.traceback


@pytest.mark.parametrize(
    ("algorithm", "params"),
    [
        ("sft", {"batch_size": 64, "max_length": 32}),
        ("grpo", {"prompts_per_step": 64, "samples_per_prompt": 2, "max_prompt_length": 16, "max_response_length": 8}),
    ],
)
def test_rows_that_are_left_out_may_leave_too_few(
    attempts: AttemptMaker, algorithm: str, params: dict[str, Any]
) -> None:
    """When the job was made its 64 rows were enough; one of them turns out to be too long."""
    attempt = attempts("few", algorithm, steps=2, **params)
    path = Path(attempt.plan.train_path)
    path.write_text(path.read_text().replace('"content": "', '"content": "' + "1" * 40, 1))
    end = attempt.run()[-1]
    assert isinstance(end, End) and (end.outcome, end.reason) == ("failed", "TOO_FEW_ROWS")
    assert "63 rows are short enough, and a step takes 64" in end.message
    assert "prompts_per_step" in end.remedy


def test_a_run_that_wants_more_slots_than_there_are_fails_at_once(attempts: AttemptMaker) -> None:
    attempt = attempts("too-many", "sft", steps=2, **PARAMS)
    end = attempts.of(attempt.folder, attempt.plan, slots=3).run()[-1]
    assert isinstance(end, End) and end.reason == "TOO_FEW_SLOTS"
