"""What messages say of jobs."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import uuid4

import pytest
from rlhf.trainer.v1 import model_pb2
from rlhf.type.v1 import job_state_pb2

from services.mesh.errors import InvalidArgument
from services.mesh.jobs import wire as job_wire
from services.mesh.jobs.resource import JobRecord
from services.mesh.jobs.store import Job, State
from services.trainer import wire
from services.trainer.entities import Model, ModelState, TrainingSpec
from services.trainer.models import wire as model_wire

MODEL, ADAPTER, JUDGE = (f"projects/default/models/{id_}" for id_ in ("base", "adapter", "judge"))
VERSION = "projects/default/datasets/digits/versions/1"


def test_an_event_of_a_job_names_all_that_it_reads_once() -> None:
    spec = {
        **dict.fromkeys(("parameter_count", "context_length", "train_rows", "validation_rows", "slots"), 1),
        "algorithm": "ppo",
        "target": "local",
        "params": {},
        "labels": {},
        "base_model": ADAPTER,
        "base_manifest_sha256": "a",
        "base_under": [{"name": MODEL, "manifest_sha256": "b"}],
        "dataset_version": VERSION,
        "validation_dataset_version": VERSION,
        "reward_models": {JUDGE: "c", MODEL: "b"},
    }
    now = datetime.now(UTC)
    job = Job(uuid4(), "training", "j", "p", State.QUEUED, 0, 1, spec, {}, None, now, None, None)
    record = JobRecord(job, TrainingSpec(**spec), [])
    assert list(wire.job_changed(record, None).uses) == sorted([MODEL, ADAPTER, JUDGE, VERSION])


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        ("", model_pb2.Model.KIND_UNSPECIFIED),
        ("LlamaForCausalLM", model_pb2.Model.KIND_LANGUAGE_MODEL),
        ("LlamaForSequenceClassification", model_pb2.Model.KIND_REWARD_MODEL),
    ],
)
def test_a_model_says_what_it_answers_with(architecture: str, kind: model_pb2.Model.Kind) -> None:
    row = Model(
        uuid4(), MODEL, "p", "", {}, {}, ModelState.READY, architecture, 1, 1, 1, "", 1, None, datetime.now(UTC)
    )
    assert model_wire.model(row).kind == kind


def test_filter_by_a_state_that_no_job_has_names_what_is_taken() -> None:
    assert job_wire.states([job_state_pb2.JOB_STATE_RUNNING]) == [State.RUNNING]
    with pytest.raises(InvalidArgument) as refused:
        job_wire.states([job_state_pb2.JOB_STATE_PAUSING])
    [violation] = refused.value.violations
    assert violation.field == "states"
    for state in State:
        assert f"JOB_STATE_{state}" in violation.description
