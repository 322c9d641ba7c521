"""DatasetService in memory, for tests of the command: no database, no worker, breakable at will."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from typing import Any

from rlhf.dataset.v1 import dataset_pb2 as types
from rlhf.dataset.v1 import dataset_service_pb2 as rpc
from rlhf.dataset.v1.dataset_service_pb2_grpc import DatasetServiceServicer
from rlhf.type.v1.registry_entry_pb2 import RegistryEntry

from services.mesh.errors import InvalidArgument, NotFound, OutOfRange, Unavailable

CHUNK_BYTES = 1000


class FakeDatasets(DatasetServiceServicer):
    """Rows must be JSON objects with `messages` or `prompt`; any other line is a finding.

    `break_after_bytes` makes the next write fail once that many bytes have arrived; `break_downloads` makes so many
    downloads end after one chunk.
    """

    def __init__(self) -> None:
        self.datasets: dict[str, types.Dataset] = {}
        self.uploads: dict[str, types.Upload] = {}
        self.content: dict[str, bytearray] = {}
        self.rows: dict[str, bytes] = {}
        self.break_after_bytes: int | None = None
        self.break_downloads = 0
        self.writes: list[int] = []
        self.skipped: list[types.SkippedRow] = []

    async def CreateDataset(self, request: rpc.CreateDatasetRequest, context: Any) -> types.Dataset:
        name = f"{request.parent}/datasets/{request.dataset_id}"
        made = types.Dataset(name=name, format=request.dataset.format, labels=dict(request.dataset.labels))
        made.create_time.GetCurrentTime()
        self.datasets[name] = made
        return made

    async def GetDataset(self, request: rpc.GetDatasetRequest, context: Any) -> types.Dataset:
        if request.name not in self.datasets:
            raise NotFound("DATASET_NOT_FOUND", f"there is no {request.name}")
        return self.datasets[request.name]

    async def ListDatasets(self, request: rpc.ListDatasetsRequest, context: Any) -> rpc.ListDatasetsResponse:
        """Two a page, whatever is asked for, so that a reader must turn pages."""
        found = [item for name, item in self.datasets.items() if name.startswith(f"{request.parent}/")]
        start = int(request.page_token or 0)
        token = str(start + 2) if start + 2 < len(found) else ""
        return rpc.ListDatasetsResponse(datasets=found[start : start + 2], next_page_token=token)

    async def DeleteDataset(self, request: rpc.DeleteDatasetRequest, context: Any) -> Any:
        from google.protobuf.empty_pb2 import Empty

        await self.GetDataset(rpc.GetDatasetRequest(name=request.name), context)
        del self.datasets[request.name]
        return Empty()

    async def CreateUpload(self, request: rpc.CreateUploadRequest, context: Any) -> types.Upload:
        for known in self.uploads.values():
            if known.sha256 == request.upload.sha256 and known.state == types.Upload.STATE_RECEIVING:
                return known
        name = f"{request.parent}/uploads/u{len(self.uploads) + 1}"
        if "refused" in request.upload.field_mapping:
            raise InvalidArgument.of("upload.field_mapping.refused", "is refused by the test")
        made = types.Upload(name=name, state=types.Upload.STATE_RECEIVING)
        made.MergeFrom(request.upload)
        self.uploads[name], self.content[name] = made, bytearray()
        return made

    async def GetUpload(self, request: rpc.GetUploadRequest, context: Any) -> types.Upload:
        return self.uploads[request.name]

    async def ListUploads(self, request: rpc.ListUploadsRequest, context: Any) -> rpc.ListUploadsResponse:
        found = [upload for name, upload in self.uploads.items() if name.startswith(f"{request.parent}/")]
        return rpc.ListUploadsResponse(uploads=reversed(found))

    async def ListSkippedRows(self, request: rpc.ListSkippedRowsRequest, context: Any) -> rpc.ListSkippedRowsResponse:
        assert request.parent in self.uploads
        return rpc.ListSkippedRowsResponse(skipped_rows=self.skipped)

    async def WriteUpload(self, requests: AsyncIterator[rpc.WriteUploadRequest], context: Any) -> types.Upload:
        name = ""
        async for request in requests:
            if not name:
                name = request.name
                self.writes.append(request.offset_bytes)
                if request.offset_bytes != len(self.content[name]):
                    raise OutOfRange("WRONG_OFFSET", f"go on at {len(self.content[name])}")
            self.content[name] += request.chunk
            self.uploads[name].received_bytes = len(self.content[name])
            if self.break_after_bytes is not None and len(self.content[name]) >= self.break_after_bytes:
                self.break_after_bytes = None
                raise Unavailable("UNAVAILABLE", "the test breaks the connection here")
        return self.uploads[name]

    async def CommitUpload(self, request: rpc.CommitUploadRequest, context: Any) -> types.Upload:
        upload, content = self.uploads[request.name], bytes(self.content[request.name])
        assert hashlib.sha256(content).hexdigest() == upload.sha256
        upload.state = types.Upload.STATE_VALIDATING
        return upload

    async def StreamUploadEvents(
        self, request: rpc.StreamUploadEventsRequest, context: Any
    ) -> AsyncIterator[rpc.StreamUploadEventsResponse]:
        upload = self.uploads[request.name]
        yield rpc.StreamUploadEventsResponse(upload=upload)
        yield rpc.StreamUploadEventsResponse()  # a heartbeat
        await asyncio.sleep(0.05)
        self._validate(upload)
        yield rpc.StreamUploadEventsResponse(upload=upload)

    async def GetDatasetVersion(self, request: rpc.GetDatasetVersionRequest, context: Any) -> types.DatasetVersion:
        dataset = self.datasets.get(request.name.partition("/versions/")[0])
        if dataset is None or not dataset.latest_version:
            raise NotFound("VERSION_NOT_FOUND", f"there is no {request.name}")
        content = self.rows[dataset.latest_version]
        return types.DatasetVersion(
            name=dataset.latest_version,
            sha256=hashlib.sha256(content).hexdigest(),
            row_count=content.count(b"\n"),
            size_bytes=len(content),
            format=dataset.format,
        )

    async def ListDatasetVersions(self, request: Any, context: Any) -> rpc.ListDatasetVersionsResponse:
        if not self.datasets[request.parent].latest_version:
            return rpc.ListDatasetVersionsResponse()
        version = await self.GetDatasetVersion(
            rpc.GetDatasetVersionRequest(name=self.datasets[request.parent].latest_version), context
        )
        return rpc.ListDatasetVersionsResponse(dataset_versions=[version])

    async def ListRows(self, request: rpc.ListRowsRequest, context: Any) -> rpc.ListRowsResponse:
        version = await self.GetDatasetVersion(rpc.GetDatasetVersionRequest(name=request.parent), context)
        answer = rpc.ListRowsResponse()
        for index, line in enumerate(self.rows[version.name].splitlines()):
            if request.first_row_index <= index < request.first_row_index + request.page_size:
                answer.rows.add(row_index=index).value.update(json.loads(line))
        return answer

    async def DownloadDataset(self, request: Any, context: Any) -> AsyncIterator[rpc.DownloadDatasetResponse]:
        content, offset = self.rows[request.name], request.offset_bytes
        while offset < len(content):
            yield rpc.DownloadDatasetResponse(offset_bytes=offset, chunk=content[offset : offset + CHUNK_BYTES])
            offset += CHUNK_BYTES
            if self.break_downloads:
                self.break_downloads -= 1
                raise Unavailable("UNAVAILABLE", "the test breaks the connection here")

    async def ListFormats(self, request: rpc.ListFormatsRequest, context: Any) -> rpc.ListFormatsResponse:
        messages = RegistryEntry(id="messages", summary="a conversation")
        prompt = RegistryEntry(id="prompt", summary="a question with an answer")
        formats = [
            types.Format(entry=messages, spellings=["openai", "sharegpt"]),
            types.Format(entry=prompt, spellings=["trl", "verl"]),
        ]
        return rpc.ListFormatsResponse(formats=formats)

    def _validate(self, upload: types.Upload) -> None:
        report, lines = upload.report, bytes(self.content[upload.name]).splitlines()
        for number, line in enumerate(lines, start=1):
            if not isinstance(_parse(line), dict):
                report.findings.add(row=number, line=number, reason="NOT_AN_OBJECT", message="a row must be an object")
            elif not {"messages", "prompt"} & _parse(line).keys():
                message = "must be a list of [role, content] turns, with at least one of the assistant's"
                report.findings.add(row=number, line=number, field="messages", reason="MISSING", message=message)
        report.row_count, report.finding_count = len(lines), len(report.findings)
        report.invalid_row_count = len(report.findings)
        if upload.max_invalid_row_count >= len(report.findings) > 0:
            self._skip(upload)
        elif report.findings:
            report.suggested_field_mapping.update({"my gold": "completion", "question": "prompt"})
            upload.state = types.Upload.STATE_FAILED
            upload.error.reason, upload.error.message = "INVALID_ROWS", f"{report.finding_count} rows are wrong"
            return
        dataset = self.datasets[upload.name.partition("/uploads/")[0]]
        dataset.latest_version = f"{dataset.name}/versions/{int(dataset.latest_version.rpartition('/')[2] or 0) + 1}"
        if upload.split.name:
            upload.split_dataset_version = f"{dataset.name}-{upload.split.name}/versions/1"
            report.split_row_count = 1
        self.rows[dataset.latest_version] = b"".join(line + b"\n" for line in lines)
        report.row_count_by_spelling["openai"] = len(lines)
        upload.state, upload.dataset_version = types.Upload.STATE_SUCCEEDED, dataset.latest_version

    def _skip(self, upload: types.Upload) -> None:
        report = upload.report
        report.invalid_row_count, report.duplicate_row_count = len(report.findings), 3
        report.duplicate_row_count_exact = True
        report.finding_count_by_reason["NOT_AN_OBJECT"] = len(report.findings)
        report.row_count_by_metadata_key.update({"source": 2, "messages[].id": 5})
        self.skipped = [
            types.SkippedRow(row=finding.row, line=finding.line, content="[1]", findings=[finding])
            for finding in report.findings
        ]


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None
