"""What is wrong is told all at once: what a fault hides is left out, what it does not hide is not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from services.mesh.errors import Violation
from services.mesh.validation import params
from services.mesh.validation.params import STRICT_FIELDS
from services.mesh.validation.partial import UnknownField, collect_violations, partial_instance, value_or


@dataclass(frozen=True)
class Part:
    __pydantic_config__ = STRICT_FIELDS
    name: str
    weight: Annotated[float, Field(gt=0)] = 1.0


@dataclass(frozen=True)
class Whole:
    __pydantic_config__ = STRICT_FIELDS
    batch: Annotated[int, Field(ge=1)] = 8
    micro: Annotated[int | None, Field(ge=1)] = None
    low: float = 0.0
    high: float = 1.0
    layers: str | list[str] = "all"
    part: Part | None = None
    parts: list[Part] = field(default_factory=list)

    def rules(self) -> list[Violation]:
        return collect_violations(
            lambda: [Violation("micro", "must divide batch")] if self.micro and self.batch % self.micro else [],
            lambda: [Violation("low", "must be below high")] if self.low >= self.high else [],
            lambda: [Violation("part.name", "is taken")] if self.part and self.part.name == "taken" else [],
        )


def fields(values: dict[str, Any]) -> set[str]:
    return {violation.field for violation in params.read(Whole, values, "p")[1]}


def test_what_is_not_known_cannot_be_read_not_even_its_default() -> None:
    made = partial_instance(Whole, {"low": 2.0})
    assert isinstance(made, Whole) and made.low == 2.0
    for name in ("batch", "micro", "parts"):
        with pytest.raises(UnknownField):
            getattr(made, name)
        with pytest.raises(UnknownField):
            hasattr(made, name)
    assert value_or(lambda: made.batch, 3) == 3


def test_a_rule_that_needs_what_is_wrong_says_nothing_and_the_others_speak() -> None:
    assert fields({"batch": 0, "micro": 3, "low": 5}) == {"p.batch", "p.low"}
    assert fields({"batch": 7, "micro": 3, "low": "x"}) == {"p.micro", "p.low"}


def test_a_misspelt_name_leaves_open_what_was_meant() -> None:
    assert fields({"batchs": 9, "micro": 3}) == {"p.batchs"}
    assert fields({"zzz": 9, "micro": 3}) == {"p.zzz", "p.micro"}


def test_what_is_right_in_a_part_that_is_wrong_stays_known() -> None:
    assert fields({"part": {"name": "taken", "weight": 0}}) == {"p.part.weight", "p.part.name"}
    assert fields({"part": {"name": "taken", "colour": 1}}) == {"p.part.colour", "p.part.name"}
    assert fields({"part": {"weight": 0}}) == {"p.part.weight", "p.part.name"}
    made, found = params.read(Whole, {"parts": [{"name": "a", "weight": -1}, 5, {"name": "b"}]})
    assert [violation.field for violation in found] == ["params.parts.0.weight", "params.parts.1"]
    assert [value_or(lambda one=one: one.name, None) for one in made.parts] == ["a", None, "b"]


def test_values_that_are_right_are_what_a_whole_reading_makes_of_them() -> None:
    made, _ = params.read(Whole, {"batch": 4.0, "low": 0, "high": "x", "part": {"name": "a"}})
    assert (made.batch, type(made.batch), made.part) == (4, int, Part("a"))


def test_the_alternatives_of_a_union_are_one_violation_of_the_field_that_was_written() -> None:
    (violation,) = params.read(Whole, {"layers": 3})[1]
    assert violation.field == "params.layers" and "string" in violation.description and "list" in violation.description


# By fault: what is sent, the field that is named, what must be right for it to be seen, and what it leaves unknown.
FAULTS: dict[str, tuple[dict[str, Any], str, set[str], set[str]]] = {
    "batch": ({"batch": 0}, "batch", set(), {"batch"}),
    "micro": ({"micro": 3}, "micro", {"batch"}, set()),
    "low": ({"low": 5.0}, "low", {"high"}, set()),
    "high": ({"high": "x"}, "high", set(), {"high"}),
    "layers": ({"layers": 1}, "layers", set(), set()),
    "weight": ({"part": {"name": "taken", "weight": 0}}, "part.weight", set(), set()),
    "parts": ({"parts": [{"name": 1}]}, "parts.0.name", set(), set()),
    "unknown": ({"zzz": 1}, "zzz", set(), set()),
}


@given(st.sets(st.sampled_from(sorted(FAULTS))))
def test_any_faults_are_all_named_and_nothing_else(chosen: set[str]) -> None:
    values: dict[str, Any] = {}
    for name in chosen:
        values |= FAULTS[name][0]
    lost = {what for name in chosen for what in FAULTS[name][3]}
    wanted = {f"p.{FAULTS[name][1]}" for name in chosen if not FAULTS[name][2] & lost}
    if "weight" in chosen:
        wanted.add("p.part.name")
    assert fields(values) == wanted
