"""DatasetService: wire → use case → wire."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from google.protobuf import empty_pb2
from rlhf.dataset.v1 import dataset_pb2
from rlhf.dataset.v1 import dataset_service_pb2 as pb
from rlhf.dataset.v1.dataset_service_pb2_grpc import DatasetServiceServicer

from services.dataset import wire
from services.dataset.datasets.service import Datasets
from services.dataset.datasets.versions import Versions
from services.dataset.formats import formats
from services.dataset.uploads.service import Uploads
from services.mesh.rpc.idempotency import RequestKey
from services.mesh.rpc.pagination import PageRequest


class Servicer(DatasetServiceServicer):
    def __init__(self, datasets: Datasets, uploads: Uploads, versions: Versions) -> None:
        self._datasets = datasets
        self._uploads = uploads
        self._versions = versions

    async def CreateDataset(self, request: pb.CreateDatasetRequest, context: Any) -> dataset_pb2.Dataset:
        key = RequestKey.of(request.parent, request.request_id, request)
        dataset = await self._datasets.create(wire.new_dataset(request), key, validate_only=request.validate_only)
        return wire.dataset_to_be(dataset, request) if request.validate_only else wire.dataset(dataset)

    async def GetDataset(self, request: pb.GetDatasetRequest, context: Any) -> dataset_pb2.Dataset:
        return wire.dataset(await self._datasets.get(request.name))

    async def ListDatasets(self, request: pb.ListDatasetsRequest, context: Any) -> pb.ListDatasetsResponse:
        page = await self._datasets.list_(request.parent, _page(request, request.parent))
        return pb.ListDatasetsResponse(datasets=map(wire.dataset, page.items), next_page_token=page.next_token)

    async def UpdateDataset(self, request: pb.UpdateDatasetRequest, context: Any) -> dataset_pb2.Dataset:
        return wire.dataset(await self._datasets.update(wire.change(request)))

    async def DeleteDataset(self, request: pb.DeleteDatasetRequest, context: Any) -> empty_pb2.Empty:
        await self._datasets.delete(request.name, request.etag)
        return empty_pb2.Empty()

    async def CreateUpload(self, request: pb.CreateUploadRequest, context: Any) -> dataset_pb2.Upload:
        return wire.upload(await self._uploads.create(wire.new_upload(request)))

    async def GetUpload(self, request: pb.GetUploadRequest, context: Any) -> dataset_pb2.Upload:
        return wire.upload(await self._uploads.get(request.name))

    async def ListUploads(self, request: pb.ListUploadsRequest, context: Any) -> pb.ListUploadsResponse:
        page = await self._uploads.list_(request.parent, _page(request, request.parent))
        return pb.ListUploadsResponse(uploads=map(wire.upload, page.items), next_page_token=page.next_token)

    async def ListSkippedRows(self, request: pb.ListSkippedRowsRequest, context: Any) -> pb.ListSkippedRowsResponse:
        page = await self._uploads.skipped_rows(request.parent, _page(request, request.parent))
        return pb.ListSkippedRowsResponse(
            skipped_rows=map(wire.skipped_row, page.items), next_page_token=page.next_token
        )

    async def WriteUpload(
        self, request_iterator: AsyncIterator[pb.WriteUploadRequest], context: Any
    ) -> dataset_pb2.Upload:
        pieces = (wire.piece(message) async for message in request_iterator)
        return wire.upload(await self._uploads.write(pieces))

    async def CommitUpload(self, request: pb.CommitUploadRequest, context: Any) -> dataset_pb2.Upload:
        return wire.upload(await self._uploads.commit(request.name))

    async def StreamUploadEvents(
        self, request: pb.StreamUploadEventsRequest, context: Any
    ) -> AsyncIterator[pb.StreamUploadEventsResponse]:
        async with aclosing(self._uploads.watch(request.name)) as changes:
            async for upload in changes:
                yield wire.upload_event(upload)

    async def DeleteUpload(self, request: pb.DeleteUploadRequest, context: Any) -> empty_pb2.Empty:
        await self._uploads.delete(request.name)
        return empty_pb2.Empty()

    async def GetDatasetVersion(self, request: pb.GetDatasetVersionRequest, context: Any) -> dataset_pb2.DatasetVersion:
        return wire.version(await self._versions.get(request.name))

    async def ListDatasetVersions(
        self, request: pb.ListDatasetVersionsRequest, context: Any
    ) -> pb.ListDatasetVersionsResponse:
        page = await self._versions.list_(request.parent, _page(request, request.parent))
        return pb.ListDatasetVersionsResponse(
            dataset_versions=map(wire.version, page.items), next_page_token=page.next_token
        )

    async def ListRows(self, request: pb.ListRowsRequest, context: Any) -> pb.ListRowsResponse:
        page_request = _page(request, request.parent, request.first_row_index)
        page = await self._versions.rows(request.parent, page_request, request.first_row_index)
        return pb.ListRowsResponse(rows=map(wire.stored_row, page.items), next_page_token=page.next_token)

    async def DownloadDataset(
        self, request: pb.DownloadDatasetRequest, context: Any
    ) -> AsyncIterator[pb.DownloadDatasetResponse]:
        async with aclosing(self._versions.download(request.name, request.offset_bytes)) as pieces:
            async for piece in pieces:
                yield wire.download(piece)

    async def ListFormats(self, request: pb.ListFormatsRequest, context: Any) -> pb.ListFormatsResponse:
        return pb.ListFormatsResponse(formats=[wire.format_(name, entry) for name, entry in formats.items()])


def _page(request: Any, *filters: object) -> PageRequest:
    return PageRequest.parse(request.page_size, request.page_token, type(request).__name__, *filters)
