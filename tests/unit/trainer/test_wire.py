"""What messages say of jobs."""

from __future__ import annotations

import pytest
from rlhf.type.v1 import job_state_pb2

from services.mesh.errors import InvalidArgument
from services.mesh.jobs import State
from services.trainer import wire


def test_filter_by_a_state_that_no_job_has_names_what_is_taken() -> None:
    assert wire.states([job_state_pb2.JOB_STATE_RUNNING]) == [State.RUNNING]
    with pytest.raises(InvalidArgument) as refused:
        wire.states([job_state_pb2.JOB_STATE_PAUSING])
    [violation] = refused.value.violations
    assert violation.field == "states"
    for state in State:
        assert f"JOB_STATE_{state}" in violation.description
