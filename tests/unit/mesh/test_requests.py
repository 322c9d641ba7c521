"""Which requests count as the same."""

from __future__ import annotations

from rlhf.dataset.v1.dataset_service_pb2 import CreateDatasetRequest
from rlhf.trainer.v1.trainer_service_pb2 import ImportModelRequest

from services.mesh.rpc.idempotency import RequestKey

ID = "f81d4fae-7dec-41d0-a765-00a0c91e6bf6"


def key(request: CreateDatasetRequest | ImportModelRequest) -> RequestKey:
    return RequestKey.of("projects/p", request.request_id, request)


def test_the_id_counts_in_either_case() -> None:
    assert key(CreateDatasetRequest(request_id=ID)) == key(CreateDatasetRequest(request_id=ID.upper()))


def test_what_was_asked_for_counts() -> None:
    assert key(CreateDatasetRequest(dataset_id="a")).sha256 != key(CreateDatasetRequest(dataset_id="b")).sha256
    labels = [(f"k{i}", "v") for i in range(50)]
    one, other = CreateDatasetRequest(request_id=ID), CreateDatasetRequest(request_id=ID)
    one.dataset.labels.update(labels)
    other.dataset.labels.update(reversed(labels))
    assert key(one) == key(other)


def test_two_kinds_of_request_are_never_the_same() -> None:
    assert key(CreateDatasetRequest(parent="projects/p")).sha256 != key(ImportModelRequest(parent="projects/p")).sha256


def test_the_request_stays_as_it_is() -> None:
    request = CreateDatasetRequest(request_id=ID)
    key(request)
    assert request.request_id == ID
