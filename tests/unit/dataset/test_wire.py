"""Every field of every noun crosses the wire, in both directions."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

import pytest
from google.protobuf import field_mask_pb2, json_format
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st
from rlhf.dataset.v1 import dataset_pb2
from rlhf.dataset.v1 import dataset_service_pb2 as pb
from rlhf.event.v1.training_job_changed_pb2 import TrainingJobChanged
from rlhf.trainer.v1 import training_job_pb2
from rlhf.type.v1 import job_state_pb2

from services.dataset import wire
from services.dataset.datasets import versions
from services.dataset.datasets.service import DatasetChange, NewDataset
from services.dataset.datasets.versions import StoredRow
from services.dataset.entities import Dataset, DatasetVersion, Upload
from services.dataset.formats import formats
from services.dataset.reading.rows import encode
from services.dataset.uploads.new_upload import NewUpload
from services.dataset.uploads.options import Split, UploadOptions, to_json
from services.dataset.uploads.service import Piece
from services.dataset.uploads.skipped_rows import SkippedRow
from services.mesh.jobs.store import State

UID = uuid.UUID(int=7)
TIME = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)
NAME = "projects/p/datasets/d"
REPORT = {
    "row_count": 3,
    "invalid_row_count": 1,
    "findings": [{"row": 2, "field": "prompt", "reason": "EMPTY", "message": "is empty", "line": 4}],
    "finding_count": 1,
    "finding_count_by_reason": {"EMPTY": 1},
    "row_count_by_spelling": {"openai": 2},
    "row_count_by_metadata_key": {"id": 2},
    "duplicate_row_count": 1,
    "duplicate_row_count_exact": True,
    "suggested_field_mapping": {"q": "prompt"},
    "split_row_count": 1,
}
OPTIONS = UploadOptions({"q": "prompt"}, 3, 0.5, Split("validation", 0.1, 7))


def dataset(**changes: Any) -> Dataset:
    fields = {
        "uid": UID,
        "name": NAME,
        "parent": "projects/p",
        "display_name": "D",
        "format": "prompt",
        "labels": {"a": "b"},
        "version_count": 3,
        "revision": 9,
        "create_time": TIME,
        "update_time": TIME,
    }
    return Dataset(**{**fields, **changes})


def upload(**changes: Any) -> Upload:
    fields = {
        "uid": UID,
        "name": f"{NAME}/uploads/{UID}",
        "dataset_uid": UID,
        "file_name": "a.jsonl",
        "size_bytes": 10,
        "sha256": "0" * 64,
        "options": {},
        "dataset_version": "",
        "split_dataset_version": "",
        "report": None,
        "create_time": TIME,
        "expire_time": TIME,
        "job_state": None,
        "job_progress": None,
        "job_error": None,
        "received_bytes": 5,
    }
    return Upload(**{**fields, **changes})


def unset(message: Message) -> set[str]:
    """Names of the fields that hold nothing."""
    return {field.name for field in message.DESCRIPTOR.fields} - {field.name for field, _ in message.ListFields()}


def test_dataset() -> None:
    message = wire.dataset(dataset())
    assert not unset(message)
    assert message.latest_version == f"{NAME}/versions/3"
    assert message.create_time.ToDatetime(UTC) == TIME
    assert wire.dataset(dataset(version_count=0)).latest_version == ""


def test_etag_tells_every_revision_and_every_namesake_apart() -> None:
    etags = {dataset(uid=uuid.UUID(int=uid), revision=revision).etag for uid in range(20) for revision in range(20)}
    assert len(etags) == 400


@pytest.mark.parametrize(("id_", "hidden"), [("d", set()), ("", {"name"})])
def test_dataset_to_be_hides_what_is_not_yet(id_: str, hidden: set[str]) -> None:
    message = wire.dataset_to_be(dataset(), pb.CreateDatasetRequest(dataset_id=id_))
    assert unset(message) == {"create_time", "update_time", "etag"} | hidden


def test_requests() -> None:
    sent = dataset_pb2.Dataset(name=NAME, display_name="D", format="prompt", labels={"a": "b"}, etag="e")
    created = pb.CreateDatasetRequest(parent="projects/p", dataset=sent, dataset_id="d")
    assert wire.new_dataset(created) == NewDataset("projects/p", "d", "D", "prompt", {"a": "b"})
    changed = pb.UpdateDatasetRequest(dataset=sent, update_mask=field_mask_pb2.FieldMask(paths=["labels"]))
    assert wire.change(changed) == DatasetChange(NAME, "D", "prompt", {"a": "b"}, "e", ["labels"])
    announced = pb.CreateUploadRequest(
        parent=NAME, upload=dataset_pb2.Upload(file_name="a.csv", size_bytes=5, sha256="f")
    )
    assert wire.new_upload(announced) == NewUpload(NAME, "a.csv", 5, "f", UploadOptions())
    asked = wire.upload(upload(options=to_json(OPTIONS)))
    assert wire.new_upload(pb.CreateUploadRequest(parent=NAME, upload=asked)).options == OPTIONS
    assert wire.piece(pb.WriteUploadRequest(name="n", offset_bytes=3, chunk=b"c")) == Piece("n", 3, b"c")


@pytest.mark.parametrize(
    ("job_state", "state"),
    [
        (None, "STATE_RECEIVING"),
        (State.QUEUED, "STATE_VALIDATING"),
        (State.RUNNING, "STATE_VALIDATING"),
        (State.CANCELLING, "STATE_VALIDATING"),
        (State.SUCCEEDED, "STATE_SUCCEEDED"),
        (State.FAILED, "STATE_FAILED"),
        (State.CANCELLED, "STATE_FAILED"),
    ],
)
def test_upload_states(job_state: State | None, state: str) -> None:
    message = wire.upload(upload(job_state=job_state))
    assert dataset_pb2.Upload.State.Name(message.state) == state
    # What is committed does not expire.
    assert message.HasField("expire_time") == (job_state is None)


def test_upload_that_ended() -> None:
    ended = upload(
        job_state=State.FAILED,
        report=REPORT,
        dataset_version=f"{NAME}/versions/1",
        split_dataset_version=f"{NAME}-validation/versions/1",
        options=to_json(OPTIONS),
        job_progress={"validated_row_count": 3},
        job_error={"code": "INVALID_ARGUMENT", "reason": "INVALID_ROWS", "message": "m", "metadata": {}},
    )
    message = wire.upload(ended)
    assert unset(message) == {"expire_time"}
    assert (message.error.reason, message.error.message) == ("INVALID_ROWS", "m")
    assert json_format.MessageToDict(message.report, preserving_proto_field_name=True) == {
        **REPORT,
        # 64-bit numbers are strings in proto's JSON.
        "row_count": "3",
        "invalid_row_count": "1",
        "finding_count": "1",
        "findings": [{**REPORT["findings"][0], "row": "2", "line": "4"}],
        "finding_count_by_reason": {"EMPTY": "1"},
        "row_count_by_spelling": {"openai": "2"},
        "row_count_by_metadata_key": {"id": "2"},
        "duplicate_row_count": "1",
        "split_row_count": "1",
    }


def test_skipped_row() -> None:
    row = SkippedRow(2, 4, "{}", False, True, [REPORT["findings"][0]])
    assert unset(wire.skipped_row(row)) == {"raw_content"}
    binary = wire.skipped_row(SkippedRow(2, 4, "/w==", True, False, []))
    assert (binary.content, binary.raw_content) == ("", b"\xff")
    assert wire.skipped_row(SkippedRow(2, 0, None, False, False, [])).content == ""


def test_heartbeat_has_no_upload() -> None:
    assert not wire.upload_event(None).HasField("upload")
    assert wire.upload_event(upload()).upload.received_bytes == 5


def test_version_and_its_event() -> None:
    version = DatasetVersion(
        dataset_uid=UID,
        number=2,
        name=f"{NAME}/versions/2",
        sha256="a" * 64,
        format="prompt",
        row_count=5,
        size_bytes=100,
        statistics={"rows": 5, "roles": {"user": {"messages": 5}}},
        source_sha256="b" * 64,
        source_file_name="a.jsonl",
        create_time=TIME,
    )
    message = wire.version(version)
    assert not unset(message)
    assert json_format.MessageToDict(message.statistics) == version.statistics
    assert wire.version_created(version).dataset_version == message


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), JSON, max_size=5))
def test_row_is_the_same_as_a_struct(row: dict[str, Any]) -> None:
    message = wire.stored_row(StoredRow(4, encode(row)))  # pyright: ignore[reportArgumentType]
    again = pb.Row.FromString(message.SerializeToString())
    assert again.row_index == 4
    assert json_format.MessageToDict(again.value) == row


def test_download_piece() -> None:
    assert wire.download(versions.Piece(7, b"x")) == pb.DownloadDatasetResponse(offset_bytes=7, chunk=b"x")


@pytest.mark.parametrize("name", formats.names())
def test_formats(name: str) -> None:
    message = wire.format_(name, formats.get(name))
    assert not unset(message)


@pytest.mark.parametrize("state", job_state_pb2.JobState.values())
def test_use_of_a_job(state: job_state_pb2.JobState.ValueType) -> None:
    job = training_job_pb2.TrainingJob(name="j", dataset_version="a", state=state, sequence=4)
    ended = job_state_pb2.JobState.Name(state).removeprefix("JOB_STATE_") in ("SUCCEEDED", "FAILED", "CANCELLED")
    assert wire.job_use(TrainingJobChanged(training_job=job)) == ("j", ["a"], 4, ended)
    job.validation_dataset_version = "b"
    assert wire.job_use(TrainingJobChanged(training_job=job))[1] == ["a", "b"]
    event = TrainingJobChanged(training_job=job, uses=["a", "b", "c"])
    assert wire.job_use(event)[1] == ["a", "b", "c"], "all that it reads"
