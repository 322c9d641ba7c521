"""Parameters of a registry entry: a frozen dataclass, filled from untrusted JSON with every violation at once.

A field is written `learning_rate: Annotated[float, Field(gt=0, le=1, description="…")] = 1e-5`; pydantic checks it and
draws its JSON Schema, from which the command line and the web form are made.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ArgsKwargs, ErrorDetails

from services.mesh.errors import InvalidArgument, Violation

P = TypeVar("P")

# Put on a Params class as `__pydantic_config__ = STRICT_FIELDS`: a misspelt name is an error, not a silent default.
STRICT_FIELDS = ConfigDict(extra="forbid", allow_inf_nan=False)


@functools.cache
def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    if not dataclasses.is_dataclass(kind) or getattr(kind, "__pydantic_config__", None) is not STRICT_FIELDS:
        raise TypeError(f"{kind.__name__} must be a dataclass with __pydantic_config__ = STRICT_FIELDS")
    return TypeAdapter(kind)


def parse(kind: type[P], values: Mapping[str, Any], field: str = "params") -> P:
    """`values` as a `kind`. Raises InvalidArgument with one violation per wrong field, each under `field`."""
    try:
        return _adapter(kind).validate_python(dict(values))
    except ValidationError as error:
        raise InvalidArgument(_violation(detail, kind, field) for detail in error.errors()) from None


def to_json(params: Any) -> dict[str, Any]:
    """The whole set, defaults included, as JSON values."""
    return _adapter(type(params)).dump_python(params, mode="json")


def schema(kind: type[Any]) -> dict[str, Any]:
    """JSON Schema (2020-12) of a Params class."""
    return _adapter(kind).json_schema()


def _violation(detail: ErrorDetails, kind: type[Any], field: str) -> Violation:
    path = ".".join([field, *(str(part) for part in detail["loc"])])
    if detail["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return Violation(path, _unknown(str(detail["loc"][-1]), _names(kind, detail["loc"][:-1])))
    if detail["type"] == "dataclass_type":
        message = f"must be an object with any of {', '.join(_names(kind, detail['loc']))}"
    else:
        said = detail["msg"].removeprefix("Value error, ")
        message = said[0].lower() + said[1:]
    given = detail["input"]
    # What is wrong with several fields at once is shown by none of them, and the first need not be one of those.
    whole = detail["type"] == "value_error" and isinstance(given, Mapping | ArgsKwargs)
    shown = "" if whole or detail["type"] in ("missing", "missing_argument") else f" (got {repr(given)[:60]})"
    return Violation(path, message + shown)


def _unknown(name: str, known: list[str]) -> str:
    """With the nearest name; where none is near, with all of them."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    if near:
        return f"unknown parameter; did you mean {near[0]}?"
    return f"unknown parameter; one of {', '.join(known)}" if known else "unknown parameter"


def _names(kind: type[Any], path: Sequence[int | str]) -> list[str]:
    """The fields of the object at `path` of a `kind`; none where that is no dataclass."""
    found: Any = kind
    for part in path:
        hint = typing.get_type_hints(found).get(str(part)) if dataclasses.is_dataclass(found) else None
        found = next((one for one in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(one)), None)
    return [field.name for field in dataclasses.fields(found)] if found is not None else []
