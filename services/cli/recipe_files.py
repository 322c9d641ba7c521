"""Recipes: presets for common tasks, one file each in `recipes/`, named, versioned and checked by a test.

A file says for which algorithm it is, when to use it, and the parameters that differ from the algorithm's defaults. The
version rises with every change of a parameter, so that a job's label tells what it was made by.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from services.mesh.errors import NotFound

FOLDER = files("services.cli") / "recipes"
# What a job made by a recipe is labelled with.
LABEL, VERSION_LABEL = "recipe", "recipe-version"


@dataclass(frozen=True)
class Recipe:
    name: str
    version: int
    algorithm: str
    summary: str
    when: str
    needs_validation: bool
    # What has no preset and must be given, by parameter, and what it is.
    needs: dict[str, str] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)

    def missing(self, params: dict[str, Any]) -> dict[str, str]:
        """Of `needs` what is not among `params`."""
        return {path: what for path, what in self.needs.items() if _at(params, path) is None}


def names() -> list[str]:
    return sorted(path.name.removesuffix(".toml") for path in FOLDER.iterdir() if path.name.endswith(".toml"))


def read(name: str) -> Recipe:
    """Raises NotFound."""
    if name not in names():
        known = ", ".join(names())
        raise NotFound("RECIPE_NOT_FOUND", f"there is no recipe {name[:80]!r}; there are {known}", name=name)
    values = tomllib.loads((FOLDER / f"{name}.toml").read_text("utf-8"))
    return Recipe(name=name, **{**values, "when": values["when"].strip()})


def _at(params: dict[str, Any], path: str) -> Any:
    found: Any = params
    for key in path.split("."):
        found = found.get(key) if isinstance(found, dict) else None
    return found


def merged(params: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`params` with `changes` over them, group by group."""
    result = dict(params)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result
