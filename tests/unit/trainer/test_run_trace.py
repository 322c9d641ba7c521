"""Spans that a run writes into its spool."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.mesh.runs import spool
from services.mesh.runs.files import CONTROL_FILE, PLAN_FILE, SPOOL_FILE
from services.mesh.runs.spans import TracedSpool
from services.mesh.runs.spool import End, Metrics, Phase, Problem, Span
from services.trainer.runs.records import read_from
from services.trainer.training import launch_plan as plans
from services.trainer.training.launch_plan import LaunchPlan, ResumePoint
from services.trainer.training.tasks import SftTask

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PLAN = LaunchPlan(
    job="projects/default/trainingJobs/j",
    job_uid="u",
    attempt=2,
    algorithm="sft",
    device="cpu",
    slots=1,
    ray_address="127.0.0.1:1",
    ray_namespace="n",
    model_path="/m",
    train_path="/t",
    validation_path=None,
    validation=None,
    task=SftTask(),
    verl={},
    adapter=False,
    max_tokens=8,
    total_steps=4,
    save_every_steps=0,
    resume_from=None,
    seed=0,
    work_dir="/w",
    traceparent=f"00-{TRACE}-{PARENT}-01",
)


def written(path: Path, plan: LaunchPlan, end: End) -> list[spool.Record]:
    writer = TracedSpool(path)
    writer.append(Phase(phase="starting"))
    writer.begin(
        plan.traceparent,
        plan.span_attributes,
    )
    writer.append(Phase(phase="waiting_for_slots"))
    writer.append(Phase(phase="training", step=0))
    writer.append(Metrics(step=1, values={"train/loss": 1.0}))
    writer.append(Phase(phase="training", step=1))
    writer.append(end)
    return read_from(path, 0)[0]


def test_a_run_and_each_of_its_phases(tmp_path: Path) -> None:
    records = written(tmp_path / "s", PLAN, End(outcome="succeeded", step=1))
    assert isinstance(records[-1], End), "the last record of a run, whatever else it writes"
    *phases, run = [record for record in records if isinstance(record, Span)]
    assert [span.name for span in phases] == ["starting", "waiting for slots", "training"]
    assert (run.name, run.parent_span_id) == ("run", PARENT)
    assert {span.parent_span_id for span in phases} == {run.span_id}
    assert {span.trace_id for span in (*phases, run)} == {TRACE}
    assert len({span.span_id for span in (*phases, run)}) == 4
    for before, after in itertools.pairwise(phases):
        assert before.start_time_ns <= before.end_time_ns == after.start_time_ns
    assert run.start_time_ns <= phases[0].start_time_ns and phases[-1].end_time_ns == run.end_time_ns
    assert run.attributes == {"rlhf.job.name": PLAN.job, "rlhf.job.attempt": 2, "rlhf.job.algorithm": "sft"}
    assert not any(span.error for span in (*phases, run))


def test_what_failed_is_marked(tmp_path: Path) -> None:
    records = written(tmp_path / "s", PLAN, End(outcome="failed", step=1, reason="OUT_OF_MEMORY"))
    errors = {record.name: record.error for record in records if isinstance(record, Span)}
    assert errors == {"starting": "", "waiting for slots": "", "training": "OUT_OF_MEMORY", "run": "OUT_OF_MEMORY"}


@pytest.mark.parametrize("traceparent", ["", f"00-{TRACE}-{PARENT}-00", "nonsense"])
def test_a_trace_that_nobody_records_costs_nothing(tmp_path: Path, traceparent: str) -> None:
    plan = dataclasses.replace(PLAN, traceparent=traceparent)
    records = written(tmp_path / "s", plan, End(outcome="succeeded", step=1))
    assert not [record for record in records if isinstance(record, Span)]
    assert len(records) == 6


@pytest.mark.parametrize("change", [{"trace_id": "x"}, {"span_id": ""}, {"name": "n" * 300}, {"end_time_ns": -1}])
def test_a_span_that_is_none_is_a_problem_and_no_span(tmp_path: Path, change: dict[str, object]) -> None:
    [good] = [r for r in written(tmp_path / "s", PLAN, End(outcome="succeeded", step=1)) if isinstance(r, Span)][-1:]
    (tmp_path / "t").write_text(json.dumps({**json.loads(spool.encode(good)), **change}) + "\n")
    [record] = read_from(tmp_path / "t", 0)[0]
    assert isinstance(record, Problem)


def test_the_runner_itself(tmp_path: Path) -> None:
    """A resumed run with nothing left to train: it needs neither Ray nor a model."""
    done = ResumePoint(step=4, path="/c")
    plan = dataclasses.replace(PLAN, resume_from=done, work_dir=str(tmp_path))
    (tmp_path / PLAN_FILE).write_bytes(plans.encode(plan))
    (tmp_path / CONTROL_FILE).write_text('{"action": "run"}')
    command = [sys.executable, "-m", "services.trainer.verl.runner", str(tmp_path)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    records = read_from(tmp_path / SPOOL_FILE, 0)[0]
    assert isinstance(records[-1], End) and records[-1].outcome == "succeeded", records[-1]
    starting, run = [record for record in records if isinstance(record, Span)]
    assert (starting.name, run.name) == ("starting", "run")
    assert (run.trace_id, run.parent_span_id, starting.parent_span_id) == (TRACE, PARENT, run.span_id)
