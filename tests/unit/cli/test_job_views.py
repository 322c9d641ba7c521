from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st
from rlhf.trainer.v1.training_job_pb2 import TrainingJob
from rlhf.type.v1.checkpoint_pb2 import Checkpoint, Provenance
from rlhf.type.v1.job_attempt_pb2 import JobAttempt
from rlhf.type.v1.job_state_pb2 import JOB_STATE_FAILED, JOB_STATE_QUEUED
from rlhf.type.v1.metric_point_pb2 import MetricPoint
from rlhf.type.v1.sample_pb2 import Sample

from services.cli import training_views
from services.cli.commands import checkpoints
from services.cli.jobkit import progress, views

points = st.lists(
    st.builds(
        MetricPoint,
        metric=st.sampled_from(["a", "b"]),
        step=st.integers(0, 3),
        attempt=st.integers(1, 3),
        ordinal=st.integers(1, 100),
        value=st.floats(allow_nan=False),
    )
)


@given(points)
def test_the_effective_series_is_the_highest_attempt_of_each_step(found: list[MetricPoint]) -> None:
    effective = views.effective(found)
    keys = [(point.metric, point.step) for point in effective]
    assert keys == sorted({(point.metric, point.step) for point in found})
    for point in effective:
        rivals = [(p.attempt, p.ordinal) for p in found if (p.metric, p.step) == (point.metric, point.step)]
        assert (point.attempt, point.ordinal) == max(rivals)


def test_the_extremes_of_a_series_leave_nan_out() -> None:
    found = [MetricPoint(metric="a", step=step, value=value) for step, value in enumerate((2, math.nan, -1))]
    least, most = (views.SERIES[index].value(("a", found)) for index in (4, 5))
    assert (least, most) == ("-1", "2")


def test_params_are_told_as_set_takes_them() -> None:
    job = TrainingJob(name="projects/p/trainingJobs/j", state=JOB_STATE_FAILED)
    reward = {"name": "exact", "params": {}}
    job.params.update({"steps": 3, "lora": None, "on": True, "reward": reward, "rate": 1.23456e-6, "seed": 1234567})
    shown = dict(training_views.facts(job))["params"]
    plain = ["lora = null", "on = true", "rate = 1.23456e-06", "seed = 1234567", "steps = 3"]
    assert shown.splitlines() == [*plain, 'reward.name = "exact"', "reward.params = {}"]


def test_a_job_that_was_only_checked_has_no_state() -> None:
    assert dict(training_views.facts(TrainingJob()))["state"] == ""
    assert dict(training_views.facts(TrainingJob(state=JOB_STATE_FAILED, phase="loading")))["state"] == "FAILED"


def test_warnings_are_told_with_their_remedy_and_how_often() -> None:
    job = TrainingJob(name="projects/p/trainingJobs/j")
    assert dict(training_views.facts(job))["warnings"] == ""
    job.warnings.add(reason="ROWS_LEFT_OUT", message="3 of 64 rows", remedy="raise max_length", count=1)
    job.warnings.add(reason="GRADIENT_ZERO", message="it was 0\x1b[0m", first_step=2, last_step=9, count=8)
    assert dict(training_views.facts(job))["warnings"].splitlines() == [
        "ROWS_LEFT_OUT: 3 of 64 rows; what to do: raise max_length",
        "GRADIENT_ZERO: it was 0 (8 times, steps 2 to 9)",
    ]
    [column] = [column for column in training_views.JOBS if column.title == "WARNINGS"]
    assert (column.value(job), column.value(TrainingJob())) == ("2", "")


def test_attempts_are_told_where_there_was_more_than_one() -> None:
    job = TrainingJob(name="projects/p/trainingJobs/j", attempts=[JobAttempt(number=1)])
    assert dict(training_views.facts(job))["attempts"] == ""
    job.attempts[0].end_reason = "the runner\nwas killed"
    job.attempts.add(number=2, resumed_from_step=40)
    assert dict(training_views.facts(job))["attempts"].splitlines() == [
        "1: from the beginning, ; ended: the runner⏎was killed",
        "2: from step 40, ",
    ]


def test_samples_have_columns_for_what_they_hold() -> None:
    bare = Sample(prompt="p", completion="c", score=math.nan)
    assert [column.title for column in views.samples_table([bare], 20)] == [
        "STEP",
        "ROW",
        "SCORE",
        "PROMPT",
        "COMPLETION",
    ]
    score = views.samples_table([bare], 20)[2].value
    assert (score(bare), score(Sample(score=0.5))) == ("–", "0.500")
    full = Sample(prompt="p", completion="c", answer="a", parts={"format": 1})
    assert [column.title for column in views.samples_table([bare, full], 20)][-2:] == ["ANSWER", "PARTS"]
    both = [Sample(split="validation"), Sample(split="rollout")]
    assert [column.title for column in views.samples_table(both, 20)][:3] == ["STEP", "OF", "ROW"]


def test_a_checkpoint_tells_what_it_was_made_from() -> None:
    found = Checkpoint(
        name="projects/p/trainingJobs/j/checkpoints/step-4",
        step=4,
        state=Checkpoint.STATE_PRUNED,
        state_reason="the job keeps the newest",
        training_state=Checkpoint.TRAINING_STATE_CORRUPT,
        provenance=Provenance(
            job="projects/p/trainingJobs/j",
            attempt=2,
            algorithm="sft",
            seed=7,
            base_model="projects/p/models/m",
            base_manifest_sha256="ab" * 32,
            previous_checkpoint="projects/p/trainingJobs/j/checkpoints/step-2",
            dataset_version="projects/p/datasets/d/versions/3",
            dataset_sha256="cd" * 32,
            software={"verl": "0.9.1", "commit": "f00d"},
        ),
    )
    facts = dict(checkpoints._facts(found))
    assert (facts["state"], facts["why"]) == ("PRUNED", "the job keeps the newest")
    assert facts["resumable"] == "no: corrupt"
    assert facts["job"] == "j (sft, seed 7, attempt 2)"
    assert facts["base weights"] == "m  abababababab"
    assert (facts["after"], facts["data"]) == ("j/step-2", "d:3  cdcdcdcdcdcd")
    assert facts["software"] == "commit f00d, verl 0.9.1"
    assert "resumable" not in {name for name, value in checkpoints._facts(Checkpoint(name=found.name)) if value}


def test_a_job_that_waits_says_behind_what() -> None:
    job = TrainingJob(name="projects/p/trainingJobs/j", state=JOB_STATE_QUEUED)
    assert dict(training_views.facts(job))["waits"] == ""
    job.queued_behind.SetInParent()
    assert dict(training_views.facts(job))["waits"] == "next to be taken"
    job.queued_behind.running.extend(["projects/p/trainingJobs/a", "projects/p/models/m"])
    assert views.queued_behind(job) == "behind a, m running"
    job.queued_behind.ahead.extend(f"projects/p/trainingJobs/b{number}" for number in range(20))
    job.queued_behind.ahead_count = 31
    assert views.queued_behind(job) == "behind a, m running, b0, b1, b2 and 28 more queued before it"
    (state,) = (column.value(job) for column in training_views.JOBS if column.title == "STATE")
    assert state == "QUEUED (behind 33)"
    assert progress.line(progress.Progress(job)).startswith("j queued behind a, m running")
    job.queued_behind.Clear()
    job.queued_behind.retry_time.FromSeconds(2_000_000_000)
    assert views.queued_behind(job).startswith("behind the next try, not before 2033-05-18")
