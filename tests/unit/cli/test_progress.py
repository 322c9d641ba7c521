from __future__ import annotations

import io
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rlhf.trainer.v1.training_job_pb2 import HeadlineMetric, TrainingJob
from rlhf.type.v1.checkpoint_pb2 import Checkpoint
from rlhf.type.v1.job_state_pb2 import (
    JOB_STATE_FAILED,
    JOB_STATE_QUEUED,
    JOB_STATE_RUNNING,
    JOB_STATE_SUCCEEDED,
    JobState,
)
from rlhf.type.v1.metric_point_pb2 import MetricPoint

from services.cli.jobkit import progress
from services.cli.training_progress import TrainingProgress
from services.trainer.algorithms import algorithms

NAME = "projects/default/trainingJobs/run"


def headline(algorithm: str) -> list[HeadlineMetric]:
    """As the mesh tells them."""
    return [HeadlineMetric(metric=one.metric, title=one.title) for one in algorithms.get(algorithm).headline_metrics]


def job(
    state: JobState.ValueType = JOB_STATE_RUNNING, sequence: int = 1, step: int = 0, attempts: int = 1
) -> TrainingJob:
    made = TrainingJob(name=NAME, state=state, sequence=sequence, step_count=step, total_step_count=100)
    made.phase = "training"
    for number in range(attempts):
        made.attempts.add(number=number + 1, end_reason="worker lost", resumed_from_step=10 * number)
    return made


def point(metric: str, step: int, value: float, attempt: int = 1, seconds: int = 0) -> MetricPoint:
    made = MetricPoint(metric=metric, step=step, value=value, attempt=attempt)
    made.observe_time.seconds = seconds
    return made


def trained(steps: int, seconds_a_step: int = 2) -> TrainingProgress:
    state = TrainingProgress(job(), headline("grpo"))
    for step in range(1, steps + 1):
        state.take_points([point("reward/mean", step, step / 100, seconds=1000 + step * seconds_a_step)])
    return state


def test_a_warning_is_said_once_however_it_comes() -> None:
    state = TrainingProgress(job())
    warned = job(sequence=2)
    warned.warnings.add(reason="GRADIENT_ZERO", message="it was 0", first_step=2, last_step=4, count=3, attempt=1)
    assert state.take_warnings(warned.warnings) == [
        "warning: GRADIENT_ZERO: it was 0 (3 times, steps 2 to 4)",
    ]
    warned.warnings[0].last_step = warned.warnings[0].count = 9
    assert state.take_job(warned) == [] == state.take_job(warned)
    warned.warnings.add(reason="GRADIENT_ZERO", message="again", remedy="look", first_step=2, count=1, attempt=2)
    assert state.take_job(warned) == ["warning: GRADIENT_ZERO: again; what to do: look"]


def test_pace_and_time_left_come_from_the_points_own_times() -> None:
    state = trained(40)
    assert state.step == 40
    assert state.step_seconds == 2
    assert state.left_seconds == 120
    assert progress.pace(state) == "2 s/step, 2:00 left"


def test_the_pace_is_that_of_the_last_steps() -> None:
    state = trained(40, seconds_a_step=10)
    last = 1000 + 400
    state.take_points(point("reward/mean", 40 + step, 0.5, seconds=last + step) for step in range(1, 31))
    assert state.step_seconds == 1


def test_nothing_is_said_of_the_pace_before_it_is_known_and_after_the_end() -> None:
    assert progress.pace(TrainingProgress(job())) == ""
    state = trained(100)
    state.take_job(job(JOB_STATE_SUCCEEDED, sequence=2, step=100))
    assert progress.pace(state) == ""


@given(st.permutations(range(1, 12)))
def test_points_in_any_order_end_at_the_same_present(order: list[int]) -> None:
    state = TrainingProgress(job(), headline("sft"))
    for step in order:
        state.take_points([point("train/loss", step, 1 / step, seconds=step)])
    assert state.values() == [("loss", "0.09091")]
    assert state.step == 11


def test_a_later_attempt_wins_over_a_higher_step_of_an_earlier_one() -> None:
    state = trained(40)
    state.take_job(job(sequence=2, step=20, attempts=2))
    state.take_points(
        [
            point("reward/mean", 21, 0.99, attempt=2, seconds=2000),
            point("reward/mean", 22, 0.5, attempt=2, seconds=2003),
        ]
    )
    assert dict(state.values())["reward"] == "0.500"
    assert (state.step, state.step_seconds) == (22, 3)
    state.take_points([point("reward/mean", 40, 0.4)])  # a late one of the first attempt
    assert dict(state.values())["reward"] == "0.500"


def test_a_new_attempt_is_told_with_its_reason_once() -> None:
    state = TrainingProgress(job())
    assert state.take_job(job(sequence=2, attempts=2)) == [
        "attempt 1 ended (worker lost); attempt 2 goes on from step 10"
    ]
    assert state.take_job(job(sequence=2, attempts=2)) == []


def test_an_older_state_does_not_undo_a_newer_one() -> None:
    state = TrainingProgress(job(JOB_STATE_FAILED, sequence=3))
    state.take_job(job(JOB_STATE_RUNNING, sequence=2))
    assert progress.phase(state) == "failed"


def test_checkpoints_are_told_once_and_only_when_decided() -> None:
    state = TrainingProgress(job(), headline("grpo"))
    verifying = Checkpoint(name=f"{NAME}/checkpoints/step-10", step=10, state=Checkpoint.STATE_VERIFYING)
    ready = Checkpoint(
        name=verifying.name, step=10, state=Checkpoint.STATE_READY, metrics={"validation/score/mean": 0.5}
    )
    corrupt = Checkpoint(name=f"{NAME}/checkpoints/step-20", step=20, state=Checkpoint.STATE_CORRUPT)
    assert state.take_checkpoints([verifying]) == []
    assert state.take_checkpoints([corrupt, ready]) == [
        "checkpoint run/step-10 is ready, held-out score 0.500",
        "checkpoint run/step-20 is corrupt",
    ]
    assert state.take_checkpoints([corrupt, ready]) == []


@pytest.mark.parametrize(
    ("algorithm", "metrics", "points", "shown", "said"),
    [
        (
            "sft",
            {"validation/loss": 1.23456, "validation/perplexity": 3.4, "validation/score/mean": 0.5},
            {"train/loss": 0.98765, "train/grad_norm": 2.0},
            [("loss", "0.9877"), ("held-out loss", "1.235 (step 10)"), ("held-out score", "0.500 (step 10)")],
            "held-out loss 1.235, held-out score 0.500",
        ),
        (
            "dpo",
            {"validation/loss": 0.6, "validation/accuracy": 0.75, "validation/margin": 0.1},
            {"train/loss": 0.5, "rewards/accuracy": 0.9, "rewards/margin": 0.25, "logps/chosen": -9.0},
            [
                ("loss", "0.5"), ("accuracy", "0.900"), ("margin", "0.250"),
                ("held-out loss", "0.6 (step 10)"), ("held-out accuracy", "0.750 (step 10)"),
            ],
            "held-out loss 0.6, held-out accuracy 0.750",
        ),
        (
            "reward_model",
            {"validation/accuracy": 0.75, "validation/margin": 0.1, "validation/loss": 0.6},
            {"train/loss": 0.5, "rewards/accuracy": 0.9},
            [
                ("loss", "0.5"), ("accuracy", "0.900"),
                ("held-out accuracy", "0.750 (step 10)"), ("held-out loss", "0.6 (step 10)"),
            ],
            "held-out accuracy 0.750, held-out loss 0.6",
        ),
        (
            "rloo",
            {"validation/score/mean": 0.25},
            {"train/loss": -0.01, "reward/mean": 0.5, "actor/kl": 0.0123, "rollout/truncated_fraction": 1 / 3},
            [("reward", "0.500"), ("held-out score", "0.250 (step 10)"), ("KL", "0.0123"), ("truncated", "0.333")],
            "held-out score 0.250",
        ),
        (
            "dapo",
            {},
            {"reward/mean": 0.5, "rollout/reward/mean": 0.125},
            [("reward", "0.125")],
            "",
        ),
    ],
)  # fmt: skip
def test_each_algorithm_is_told_by_what_means_something_for_it(
    algorithm: str, metrics: dict[str, float], points: dict[str, float], shown: list[tuple[str, str]], said: str
) -> None:
    state = TrainingProgress(job(), headline(algorithm))
    saved = Checkpoint(name=f"{NAME}/checkpoints/step-10", step=10, state=Checkpoint.STATE_READY, metrics=metrics)
    assert state.take_checkpoints([saved]) == ["checkpoint run/step-10 is ready" + (f", {said}" if said else "")]
    state.take_points(point(metric, 10, value) for metric, value in (points | metrics).items())
    assert state.values() == shown


def test_what_the_headlines_name_is_what_the_trainers_report() -> None:
    """A series that nothing makes would never be seen to be missing."""
    from services.trainer.verl.metrics import NAMES

    ours = {"rollout/reward/mean", "held_out/mean", "validation/score/mean", "validation/loss", "validation/accuracy"}
    for name in algorithms.names():
        named = {one.metric for one in algorithms.get(name).headline_metrics}
        assert named and named <= set(NAMES.values()) | ours


def test_the_score_is_that_of_its_step_and_nan_is_shown() -> None:
    state = trained(12)
    state.take_points([point("validation/score/mean", 0, 0.25), point("actor/kl", 12, math.nan)])
    assert state.values() == [("reward", "0.120"), ("held-out score", "0.250 (step 0)"), ("KL", "NaN")]
    assert progress.line(state) == (
        "run training  step 12/100  reward 0.120  held-out score 0.250 (step 0)  KL NaN  2 s/step, 2:56 left"
    )


@pytest.mark.parametrize("width", [40, 60, 100, 200])
@pytest.mark.parametrize("steps", [0, 1, 50])
def test_the_panel_fits_the_terminal(width: int, steps: int) -> None:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=True, color_system=None)
    console.print(progress.panel(trained(steps)))
    lines = out.getvalue().splitlines()
    assert max(len(line) for line in lines) <= width
    assert f"{steps}/100" in lines[0]


def test_a_queued_job_has_a_panel_too() -> None:
    out = io.StringIO()
    Console(file=out, width=60).print(progress.panel(TrainingProgress(TrainingJob(name=NAME, state=JOB_STATE_QUEUED))))
    assert "queued" in out.getvalue()
