"""Proto ↔ dataclass, pure, both ways."""

from __future__ import annotations

import base64
import json

import msgspec
from rlhf.dataset.v1 import dataset_pb2
from rlhf.dataset.v1 import dataset_service_pb2 as pb
from rlhf.event.v1 import dataset_version_created_pb2, training_job_changed_pb2
from rlhf.type.v1 import job_state_pb2

from services.dataset.datasets import versions
from services.dataset.datasets.service import DatasetChange, NewDataset
from services.dataset.datasets.versions import StoredRow
from services.dataset.entities import Dataset, DatasetVersion, Upload
from services.dataset.reading.input_layouts import Format
from services.dataset.uploads import service
from services.dataset.uploads.new_upload import NewUpload
from services.dataset.uploads.options import Split, UploadOptions, from_json
from services.dataset.uploads.skipped_rows import SkippedRow
from services.mesh.rpc.wellknown import registry_entry, timestamp, to_struct

_ENDED = frozenset(
    {job_state_pb2.JOB_STATE_SUCCEEDED, job_state_pb2.JOB_STATE_FAILED, job_state_pb2.JOB_STATE_CANCELLED}
)


def new_dataset(request: pb.CreateDatasetRequest) -> NewDataset:
    dataset = request.dataset
    return NewDataset(request.parent, request.dataset_id, dataset.display_name, dataset.format, dict(dataset.labels))


def change(request: pb.UpdateDatasetRequest) -> DatasetChange:
    dataset = request.dataset
    return DatasetChange(
        name=dataset.name,
        display_name=dataset.display_name,
        format=dataset.format,
        labels=dict(dataset.labels),
        etag=dataset.etag,
        paths=list(request.update_mask.paths),
    )


def dataset(row: Dataset) -> dataset_pb2.Dataset:
    return dataset_pb2.Dataset(
        name=row.name,
        display_name=row.display_name,
        format=row.format,
        labels=row.labels,
        latest_version=row.latest_version,
        create_time=timestamp(row.create_time),
        update_time=timestamp(row.update_time),
        etag=row.etag,
    )


def dataset_to_be(row: Dataset, request: pb.CreateDatasetRequest) -> dataset_pb2.Dataset:
    """What would be made: an id and times that the server would choose are left out."""
    message = dataset(row)
    for field in ("create_time", "update_time", "etag"):
        message.ClearField(field)
    if not request.dataset_id:
        message.ClearField("name")
    return message


def new_upload(request: pb.CreateUploadRequest) -> NewUpload:
    upload = request.upload
    return NewUpload(request.parent, upload.file_name, upload.size_bytes, upload.sha256, _options(upload))


def _options(upload: dataset_pb2.Upload) -> UploadOptions:
    split = upload.split
    return UploadOptions(
        field_mapping=dict(upload.field_mapping),
        max_invalid_rows=upload.max_invalid_row_count,
        max_invalid_share=upload.max_invalid_row_share,
        split=Split(split.name, split.share, split.seed) if upload.HasField("split") else None,
    )


def upload(row: Upload) -> dataset_pb2.Upload:
    options = from_json(row.options)
    split = options.split
    return dataset_pb2.Upload(
        name=row.name,
        file_name=row.file_name,
        size_bytes=row.size_bytes,
        sha256=row.sha256,
        received_bytes=row.received_bytes,
        state=dataset_pb2.Upload.State.Value(f"STATE_{row.state}"),
        dataset_version=row.dataset_version,
        report=dataset_pb2.ValidationReport(**row.report) if row.report else None,
        error=_upload_error(row),
        create_time=timestamp(row.create_time),
        expire_time=timestamp(row.expire_time) if row.job_state is None else None,
        validated_row_count=row.validated_row_count,
        field_mapping=options.field_mapping,
        max_invalid_row_count=options.max_invalid_rows,
        max_invalid_row_share=options.max_invalid_share,
        split=dataset_pb2.Split(name=split.name, share=split.share, seed=split.seed) if split else None,
        split_dataset_version=row.split_dataset_version,
    )


def skipped_row(row: SkippedRow) -> dataset_pb2.SkippedRow:
    return dataset_pb2.SkippedRow(
        row=row.row,
        line=row.line,
        content="" if row.is_base64 else row.content or "",
        raw_content=base64.b64decode(row.content or "") if row.is_base64 else b"",
        truncated=row.is_cut,
        findings=[dataset_pb2.Finding(**finding) for finding in row.findings],
    )


def _upload_error(row: Upload) -> dataset_pb2.UploadError | None:
    if not row.job_error:
        return None
    return dataset_pb2.UploadError(reason=row.job_error["reason"], message=row.job_error["message"])


def piece(message: pb.WriteUploadRequest) -> service.Piece:
    return service.Piece(message.name, message.offset_bytes, message.chunk)


def upload_event(row: Upload | None) -> pb.StreamUploadEventsResponse:
    """None is a heartbeat."""
    return pb.StreamUploadEventsResponse(upload=upload(row) if row else None)


def version(row: DatasetVersion) -> dataset_pb2.DatasetVersion:
    return dataset_pb2.DatasetVersion(
        name=row.name,
        sha256=row.sha256,
        row_count=row.row_count,
        size_bytes=row.size_bytes,
        format=row.format,
        statistics=to_struct(row.statistics),
        source_sha256=row.source_sha256,
        source_file_name=row.source_file_name,
        create_time=timestamp(row.create_time),
    )


def version_created(row: DatasetVersion) -> dataset_version_created_pb2.DatasetVersionCreated:
    return dataset_version_created_pb2.DatasetVersionCreated(dataset_version=version(row))


def stored_row(row: StoredRow) -> pb.Row:
    """Numbers become doubles, as google.protobuf.Struct has no others; a download gives them exactly."""
    message = pb.Row(row_index=row.row_index)
    message.value.update(json.loads(row.json))
    return message


def download(piece: versions.Piece) -> pb.DownloadDatasetResponse:
    return pb.DownloadDatasetResponse(offset_bytes=piece.offset_bytes, chunk=piece.chunk)


def format_(name: str, entry: type[Format]) -> dataset_pb2.Format:
    return dataset_pb2.Format(
        entry=registry_entry(name, entry),
        row_schema=to_struct(msgspec.json.schema(entry.row)),
        spellings=[spelling.name for spelling in entry.spellings],
    )


def job_use(event: training_job_changed_pb2.TrainingJobChanged) -> tuple[str, list[str], int, bool]:
    """(name of the job, resources that it reads, its sequence, whether it has ended)."""
    job = event.training_job
    # Events of earlier versions, which a stream keeps for a week, have no `uses`.
    named = event.uses or (job.dataset_version, job.validation_dataset_version)
    return job.name, [name for name in named if name], job.sequence, job.state in _ENDED
