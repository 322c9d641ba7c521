"""Parameters of a registry entry: every violation at once, each under its path; what is written is read back."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import field as field_
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from services.mesh.errors import InvalidArgument
from services.mesh.validation import params


@dataclass(frozen=True)
class Lora:
    __pydantic_config__ = params.STRICT_FIELDS
    rank: Annotated[int, Field(ge=1, le=512)] = 8


@dataclass(frozen=True)
class Params:
    """What the tests parse."""

    __pydantic_config__ = params.STRICT_FIELDS
    steps: Annotated[int, Field(ge=1, description="Optimiser steps.")]
    rate: Annotated[float, Field(gt=0, le=1)] = 1e-5
    kind: Literal["a", "b"] = "a"
    lora: Lora | None = None
    names: tuple[str, ...] = field_(default=())


def wrong(values: dict[str, object]) -> dict[str, str]:
    with pytest.raises(InvalidArgument) as caught:
        params.parse(Params, values, "job.params")
    return {violation.field: violation.description for violation in caught.value.violations}


def test_every_violation_at_once() -> None:
    found = wrong({"rate": 2, "kind": "c", "lora": {"rank": 0, "alfa": 1}, "names": [1], "stps": 3})
    assert set(found) == {
        "job.params.steps", "job.params.rate", "job.params.kind", "job.params.lora.rank", "job.params.lora.alfa",
        "job.params.names.0", "job.params.stps",
    }  # fmt: skip
    assert found["job.params.stps"] == "unknown parameter; did you mean steps?"
    assert found["job.params.lora.alfa"] == "unknown parameter; one of rank"
    assert "got 2" in found["job.params.rate"]


def test_what_is_near_no_name_is_told_all_names_and_no_object_what_it_may_hold() -> None:
    found = wrong({"steps": 1, "batch": 2, "lora": 16})
    assert found["job.params.batch"] == "unknown parameter; one of steps, rate, kind, lora, names"
    assert found["job.params.lora"] == "must be an object with any of rank (got 16)"


@pytest.mark.parametrize("rate", [float("nan"), float("inf"), "fast", None, 0])
def test_no_number(rate: object) -> None:
    assert list(wrong({"steps": 1, "rate": rate})) == ["job.params.rate"]


def test_numbers_of_json_are_whole_where_they_must_be() -> None:
    assert params.parse(Params, {"steps": 3.0}).steps == 3  # google.protobuf.Struct knows only doubles
    assert list(wrong({"steps": 3.5})) == ["job.params.steps"]


@given(
    st.builds(
        Params,
        steps=st.integers(1, 10**6),
        rate=st.floats(1e-9, 1),
        kind=st.sampled_from(["a", "b"]),
        lora=st.none() | st.builds(Lora, rank=st.integers(1, 512)),
        names=st.lists(st.text(), max_size=3).map(tuple),
    )
)
def test_what_is_written_is_read_back(value: Params) -> None:
    assert params.parse(Params, params.to_json(value)) == value


def test_the_schema_says_what_a_form_needs() -> None:
    properties = params.schema(Params)["properties"]
    assert properties["steps"] == {"description": "Optimiser steps.", "minimum": 1, "title": "Steps", "type": "integer"}
    assert properties["rate"]["default"] == 1e-5
    assert params.schema(Params)["required"] == ["steps"]


def test_a_class_that_would_take_any_field_is_a_mistake() -> None:
    @dataclass(frozen=True)
    class Loose:
        a: int = 1

    with pytest.raises(TypeError, match="STRICT_FIELDS"):
        params.parse(Loose, {})
