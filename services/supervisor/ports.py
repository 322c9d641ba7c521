"""The ports of a mesh, in `run/ports.json`."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from services.supervisor.embedded.home import write_private
from services.supervisor.embedded.ports import free_port, is_free


class Ports:
    """A port for each name, the one it had last time where that is free: addresses stay the same over restarts."""

    def __init__(self, path: Path, kept: Collection[str]) -> None:
        self._path = path
        self._kept = kept
        try:
            self._last: dict[str, int] = json.loads(path.read_text())
        except (OSError, ValueError):
            self._last = {}
        self._taken: dict[str, int] = {}

    def take(self, name: str) -> int:
        last = self._last.get(name)
        if last is None or not (name in self._kept or is_free(last)):
            last = free_port({*self._taken.values(), *self._last.values()})
        self._taken[name] = last
        return last

    def save(self) -> None:
        write_private(self._path, json.dumps(self._taken))
