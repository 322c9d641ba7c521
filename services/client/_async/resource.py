"""What the namespaces of a client have in common."""

from __future__ import annotations

from services.client._async.calls import AsyncCalls


class AsyncResource:
    """`project` is `projects/{id}`. Names may be short, `digits`, or full, `projects/p/datasets/digits`."""

    def __init__(self, calls: AsyncCalls, project: str) -> None:
        self._calls = calls
        self._project = project
