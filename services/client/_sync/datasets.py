"""Datasets and the formats that rows can have."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence

from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask
from rlhf.dataset.v1 import dataset_service_pb2 as rpc
from rlhf.dataset.v1.dataset_pb2 import Dataset, Format

from services.client import references
from services.client._sync.resource import Resource


class Datasets(Resource):
    def create(
        self,
        name: str,
        format: str,
        *,
        display_name: str = "",
        labels: Mapping[str, str] | None = None,
        validate_only: bool = False,
    ) -> Dataset:
        """`format` is one of `formats()`. Raises AlreadyExists, InvalidArgument."""
        full = references.dataset(self._project, name, "name")
        request = rpc.CreateDatasetRequest(
            parent=full.rpartition("/datasets/")[0],
            dataset=Dataset(format=format, display_name=display_name, labels=labels or {}),
            dataset_id=full.rpartition("/")[2],
            request_id=str(uuid.uuid4()),
            validate_only=validate_only,
        )
        return self._calls.call("CreateDataset", request, Dataset)

    def get(self, name: str) -> Dataset:
        """Raises NotFound."""
        request = rpc.GetDatasetRequest(name=references.dataset(self._project, name, "name"))
        return self._calls.call("GetDataset", request, Dataset)

    def list(self, *, limit: int = 0) -> Iterator[Dataset]:
        """Newest first; 0 takes all."""
        request = rpc.ListDatasetsRequest(parent=self._project)
        return self._calls.pages("ListDatasets", request, rpc.ListDatasetsResponse, lambda page: page.datasets, limit)

    def update(self, dataset: Dataset, fields: Sequence[str]) -> Dataset:
        """Set `fields` (`display_name`, `labels`) to what `dataset` holds. Raises Aborted where its etag is old."""
        request = rpc.UpdateDatasetRequest(dataset=dataset, update_mask=FieldMask(paths=fields))
        return self._calls.call("UpdateDataset", request, Dataset)

    def delete(self, name: str, *, etag: str = "") -> None:
        """With its versions and uploads. Raises NotFound, FailedPrecondition while a job reads it."""
        request = rpc.DeleteDatasetRequest(name=references.dataset(self._project, name, "name"), etag=etag)
        self._calls.call("DeleteDataset", request, Empty)

    def formats(self) -> Sequence[Format]:
        """What a row can be."""
        return (self._calls.call("ListFormats", rpc.ListFormatsRequest(), rpc.ListFormatsResponse)).formats
