"""Well-known messages as plain values."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from google.rpc import code_pb2, error_details_pb2

from services.mesh.rpc.wellknown import status, struct, timestamp, to_struct


def test_whole_numbers_come_back_as_integers_at_any_depth() -> None:
    values = {"a": 1, "b": 0.5, "c": [1, {"d": 2}, None, True, "x"], "e": {"f": []}}
    found = struct(to_struct(values))
    assert found == values
    assert [type(found["a"]), type(found["c"][0]), type(found["c"][1]["d"]), type(found["c"][3])] == [
        int, int, int, bool,
    ]  # fmt: skip


def test_what_json_cannot_hold_stays() -> None:
    message = to_struct({})
    message.fields["x"].number_value = math.nan
    assert math.isnan(struct(message)["x"])


def test_a_moment_keeps_its_microseconds_and_none_stays_none() -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)
    assert timestamp(moment).ToDatetime(UTC) == moment
    assert timestamp(None) is None


def test_a_stored_error_has_its_reason() -> None:
    found = status({"code": "NOT_FOUND", "message": "gone", "reason": "GONE", "metadata": {"n": 1}})
    info = error_details_pb2.ErrorInfo()
    assert found.details[0].Unpack(info)
    assert (found.code, found.message, info.reason, info.metadata["n"]) == (code_pb2.NOT_FOUND, "gone", "GONE", "1")
    assert not status(None).code and not status({}).details
