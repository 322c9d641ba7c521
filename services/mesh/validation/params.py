"""Parameters of a registry entry: a frozen dataclass, filled from untrusted JSON with every violation at once.

A field is written `learning_rate: Annotated[float, Field(gt=0, le=1, description="…")] = 1e-5`; pydantic checks it and
draws its JSON Schema, from which the command line and the web form are made. What holds between fields is a method
`rules` of the class (`Ruled`); other tools' names for its fields stand in a class variable `other_names`. With fields
that are wrong `read` still gives all the others, and the rules that need no wrong one are asked.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from services.mesh.errors import InvalidArgument, Violation
from services.mesh.validation.partial import UnknownField, collect_violations, partial_instance

P = TypeVar("P")
Path = tuple[int | str, ...]

# Put on a Params class as `__pydantic_config__ = STRICT_FIELDS`: a misspelt name is an error, not a silent default.
STRICT_FIELDS = ConfigDict(extra="forbid", allow_inf_nan=False)
_UNKNOWN_NAME = ("unexpected_keyword_argument", "extra_forbidden")
_MISSING = ("missing", "missing_argument")


@runtime_checkable
class Ruled(Protocol):
    """A Params class with rules of its own."""

    def rules(self) -> list[Violation]:
        """What is wrong between its fields, by `collect_violations`; fields are those of the class."""
        ...


@functools.cache
def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    if not dataclasses.is_dataclass(kind) or getattr(kind, "__pydantic_config__", None) is not STRICT_FIELDS:
        raise TypeError(f"{kind.__name__} must be a dataclass with __pydantic_config__ = STRICT_FIELDS")
    return TypeAdapter(kind)


def read(kind: type[P], values: Mapping[str, Any], field: str = "params") -> tuple[P, list[Violation]]:
    """`values` as a `kind`, and everything that is wrong, each under `field`. What is wrong by itself, or has no value,
    is unknown in what is given back: reading it raises Unknown (services/mesh/validation/partial.py)."""
    found: list[Violation] = []
    try:
        made = _adapter(kind).validate_python(dict(values))
    except ValidationError as error:
        details = error.errors()
        found = _merged(_violation(detail, kind, values, field) for detail in details)
        made = _partly(kind, values, [fault for detail in details for fault in _faults(detail, kind)])
    return made, found + [violation.under(field) for violation in collect_violations(lambda: _rules(made))]


def parse(kind: type[P], values: Mapping[str, Any], field: str = "params") -> P:
    """`values` as a `kind`. Raises InvalidArgument with one violation per wrong field, each under `field`."""
    made, found = read(kind, values, field)
    if found:
        raise InvalidArgument(found)
    return made


def to_json(params: Any) -> dict[str, Any]:
    """The whole set, defaults included, as JSON values."""
    return _adapter(type(params)).dump_python(params, mode="json")


def schema(kind: type[Any]) -> dict[str, Any]:
    """JSON Schema (2020-12) of a Params class."""
    return _adapter(kind).json_schema()


def _rules(made: object) -> list[Violation]:
    return made.rules() if isinstance(made, Ruled) else []


def _faults(detail: ErrorDetails, kind: type[Any]) -> list[Path]:
    """Where a value is not known because of an error. A misspelt name leaves the one open that was meant."""
    path = detail["loc"]
    near = _meant(str(path[-1]), kind, path[:-1]) if detail["type"] in _UNKNOWN_NAME else None
    return [path, (*path[:-1], *near.split("."))] if near else [path]


def _partly(kind: type[P], values: Mapping[str, Any], faults: Sequence[Path]) -> P:
    """A `kind` without what is at `faults`; everything else has passed the checks already."""
    made: dict[str, Any] = {}
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        below = [fault[1:] for fault in faults if fault and fault[0] == field.name]
        try:
            if field.name in values:
                made[field.name] = _known(hints[field.name], values[field.name], below)
            elif not below:
                made[field.name] = _default(field)
        except UnknownField:
            continue
    return partial_instance(kind, made)


def _known(hint: Any, value: Any, faults: Sequence[Path]) -> Any:
    """`value` as `hint` has it, of which a part may be unknown. Raises Unknown where all of it is."""
    if not faults:
        return _part_adapter(hint).validate_python(value)
    inner = _dataclass_of(hint)
    if inner is None or () in faults:
        raise UnknownField
    if isinstance(value, Mapping):
        return _partly(inner, value, faults)
    if not isinstance(value, list):
        raise UnknownField
    parts = [[fault[1:] for fault in faults if fault[0] == index] for index in range(len(value))]
    # One that is wrong as a whole still has its place: an object of which nothing is known.
    return [
        partial_instance(inner, {}) if () in below else _known(inner, one, below)
        for one, below in zip(value, parts, strict=True)
    ]


@functools.cache
def _part_adapter(hint: Any) -> TypeAdapter[Any]:
    # A dataclass brings a configuration of its own.
    own = dataclasses.is_dataclass(getattr(hint, "__origin__", hint))
    return TypeAdapter(hint, config=None if own else STRICT_FIELDS)


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _violation(detail: ErrorDetails, kind: type[Any], values: Mapping[str, Any], field: str) -> Violation:
    path = ".".join([field, *_written(detail["loc"], values)])
    if detail["type"] in _UNKNOWN_NAME:
        name, place = str(detail["loc"][-1]), detail["loc"][:-1]
        return Violation(path, _unknown(_meant(name, kind, place), _names(kind, place)))
    if detail["type"] == "dataclass_type":
        message = f"must be an object with any of {', '.join(_names(kind, detail['loc']))}"
    else:
        said = detail["msg"].removeprefix("Value error, ")
        message = said[0].lower() + said[1:]
    shown = "" if detail["type"] in _MISSING else f" (got {repr(detail['input'])[:60]})"
    return Violation(path, message + shown)


def _written(path: Path, values: Any) -> list[str]:
    """`path` without what pydantic calls the alternatives of a union, which nobody wrote."""
    kept: list[str] = []
    for index, part in enumerate(path):
        if isinstance(values, Mapping) and (part in values or index == len(path) - 1):
            values = values.get(part)
        elif isinstance(values, list) and isinstance(part, int) and part < len(values):
            values = values[part]
        else:
            continue
        kept.append(str(part))
    return kept


def _merged(found: typing.Iterable[Violation]) -> list[Violation]:
    """One a field: each alternative of a union says by itself why it is not meant."""
    by_field: dict[str, list[str]] = {}
    for violation in found:
        by_field.setdefault(violation.field, []).append(violation.description)
    return [Violation(field, ", or ".join(dict.fromkeys(said))) for field, said in by_field.items()]


def _meant(name: str, kind: type[Any], place: Path) -> str | None:
    """The parameter, dotted, that other tools call `name`, by the class's `other_names`; else the nearest name."""
    known = _names(kind, place)
    other: str | None = getattr(kind, "other_names", {}).get(name) if not place else None
    if other is not None:
        *outer, last = other.split(".")
        if last in _names(kind, outer):
            return other
    return _nearest(name, known)


def _unknown(near: str | None, known: list[str]) -> str:
    """With the name that is meant; where none is near, with all of them."""
    if near:
        return f"unknown parameter; did you mean {near}?"
    return f"unknown parameter; one of {', '.join(known)}" if known else "unknown parameter"


def _nearest(name: str, known: list[str]) -> str | None:
    return next(iter(difflib.get_close_matches(name, known, n=1, cutoff=0.7)), None)


def _names(kind: type[Any], path: Sequence[int | str]) -> list[str]:
    """The fields of the object at `path` of a `kind`; none where that is no dataclass."""
    found: Any = kind
    for part in path:
        if not dataclasses.is_dataclass(found):
            return []
        if isinstance(part, str):
            found = _dataclass_of(typing.get_type_hints(found).get(part))
    return [field.name for field in dataclasses.fields(found)] if found is not None else []


def _dataclass_of(hint: Any) -> Any:
    """The dataclass that a hint is about: `D`, `D | None`, `list[D]`, annotated or not; None where it is about none."""
    if dataclasses.is_dataclass(hint):
        return hint
    return next((found for one in typing.get_args(hint) if (found := _dataclass_of(one)) is not None), None)
