"""When a call is made again."""

from __future__ import annotations

import pytest
from rlhf.dataset.v1.dataset_service_pb2 import CreateDatasetRequest, DeleteDatasetRequest, GetDatasetRequest

from services.client.backoff import Backoff, is_connection_lost
from services.mesh.errors import DeadlineExceeded, NotFound, PlatformError, Unavailable
from services.mesh.rpc.client import is_repeatable


def test_pauses_double_with_jitter_up_to_a_limit_and_end() -> None:
    backoff, pauses = Backoff(60), []
    while (pause := backoff.next()) is not None:
        pauses.append(pause)
    full = [0.1 * 2**n for n in range(6)] + [5.0] * (len(pauses) - 6)
    assert all(whole / 2 <= pause <= whole for pause, whole in zip(pauses, full, strict=True))
    assert len(pauses) == 17
    backoff.reset()
    assert (backoff.next() or 1) <= 0.1


def test_two_callers_do_not_come_back_together() -> None:
    first, second = Backoff(60), Backoff(60)
    assert [first.next() for _ in range(5)] != [second.next() for _ in range(5)]


@pytest.mark.parametrize(
    ("method", "request_", "repeatable"),
    [
        ("/s/GetDataset", GetDatasetRequest(), True),
        ("/s/ListDatasets", GetDatasetRequest(), True),
        ("/s/CreateDataset", CreateDatasetRequest(), False),
        ("/s/CreateDataset", CreateDatasetRequest(request_id="x"), True),
        ("/s/CommitUpload", GetDatasetRequest(), True),
        ("/s/DeleteDataset", DeleteDatasetRequest(), False),
        ("/s/CancelTrainingJob", GetDatasetRequest(), False),
    ],
)
def test_what_may_be_repeated(method: str, request_: object, repeatable: bool) -> None:
    assert is_repeatable(method, request_) is repeatable


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (Unavailable("SERVICE_UNREACHABLE", ""), True),
        (Unavailable("UNAVAILABLE", ""), True),
        (DeadlineExceeded("DEADLINE_EXCEEDED", ""), True),
        (DeadlineExceeded("SLOW_QUERY", ""), False),
        (NotFound("JOB_NOT_FOUND", ""), False),
        (PlatformError("INTERNAL", ""), False),
    ],
)
def test_a_lost_connection_is_told_from_a_failed_call(error: PlatformError, lost: bool) -> None:
    assert is_connection_lost(error) is lost
