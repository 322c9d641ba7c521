"""A name → entry table filled by a decorator. One folder is one registry; the first look-up imports the folder."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Generic, TypeVar

from services.mesh.errors import InvalidArgument

T = TypeVar("T")


class Registry(Generic[T]):
    """The entries of one folder, by name.

    `kind` is the field that callers name an entry with (`algorithm`, `format`); `package` is the folder whose
    modules register themselves.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self._package = package
        self._entries: dict[str, T] = {}
        self._imported = False

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator. Raises ValueError when the name is taken: two files must not fight over one word."""

        def add(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._entries[name] = entry
            return entry

        return add

    def get(self, name: str, field: str | None = None) -> T:
        """The entry, or InvalidArgument on `field` (default: the kind) that lists what there is."""
        self._fill()
        try:
            return self._entries[name]
        except KeyError:
            known = ", ".join(sorted(self._entries))
            raise InvalidArgument.of(field or self.kind, f"unknown {self.kind} {name[:80]!r}; one of {known}") from None

    def items(self) -> list[tuple[str, T]]:
        """Every entry, by name."""
        self._fill()
        return sorted(self._entries.items())

    def names(self) -> list[str]:
        return [name for name, _ in self.items()]

    def _fill(self) -> None:
        if self._imported:
            return
        for module in pkgutil.iter_modules(importlib.import_module(self._package).__path__):
            importlib.import_module(f"{self._package}.{module.name}")
        self._imported = True


def summary(entry: object) -> str:
    """The first line of an entry's docstring, which every entry must have."""
    text = inspect.getdoc(entry)
    if not text:
        raise ValueError(f"{entry!r} has no docstring")
    return text.splitlines()[0]
