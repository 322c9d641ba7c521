"""`--set key=value`, `--set-file` and `--label`: text from the command line → parameters."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from services.mesh.errors import InvalidArgument, Violation


def parameters(assignments: Sequence[str], file: Path | None = None) -> dict[str, Any]:
    """The params of a job: those of `file` (.json or .toml), then each `key.part=value` over them, in order.

    A value is read as JSON (`3`, `true`, `null`, `[1, 2]`, `{"a": 1}`) and where it is none, as the text itself.
    Raises InvalidArgument with everything that cannot be read.
    """
    values = read_file(file) if file is not None else {}
    violations: list[Violation] = []
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not all(part for part in key.split(".")):
            violations.append(Violation("--set", f"must be key=value (got {assignment[:60]!r})"))
        elif (taken := _put(values, key.split("."), value(text))) is not None:
            violations.append(Violation(f"--set {key}", f"{taken!r} is set to a plain value already"))
    if violations:
        raise InvalidArgument(violations)
    return values


def read_file(path: Path) -> dict[str, Any]:
    """A JSON or TOML file with an object at its top. Raises InvalidArgument."""
    try:
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (OSError, ValueError) as error:
        raise InvalidArgument.of(str(path), f"cannot be read as JSON or TOML: {error}") from None
    if not isinstance(values, dict):
        raise InvalidArgument.of(str(path), "must hold an object at its top")
    return values


def value(text: str) -> Any:
    """JSON, else the text. NaN and Infinity are no JSON and stay text."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except ValueError:
        return text


def labels(assignments: Sequence[str]) -> dict[str, str]:
    """`key=value` pairs. Raises InvalidArgument."""
    wrong = [text for text in assignments if not text.partition("=")[0] or "=" not in text]
    if wrong:
        raise InvalidArgument(Violation("--label", f"must be key=value (got {text[:60]!r})") for text in wrong)
    return {key: text for key, _, text in (assignment.partition("=") for assignment in assignments)}


def _put(values: dict[str, Any], path: list[str], new: Any) -> str | None:
    """Set values[a][b][c]; the path that stands in the way, if one does."""
    for depth, part in enumerate(path[:-1], start=1):
        inner = values.setdefault(part, {})
        if not isinstance(inner, dict):
            return ".".join(path[:depth])
        values = inner
    values[path[-1]] = new
    return None


def _refuse_constant(text: str) -> Any:
    raise ValueError(text)
