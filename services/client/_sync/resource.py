"""What the namespaces of a client have in common."""

from __future__ import annotations

from services.client._sync.calls import Calls


class Resource:
    """`project` is `projects/{id}`. Names may be short, `digits`, or full, `projects/p/datasets/digits`."""

    def __init__(self, calls: Calls, project: str) -> None:
        self._calls = calls
        self._project = project
