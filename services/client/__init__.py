"""The mesh from Python: `Client`, and `AsyncClient` for asyncio. docs/api.md shows both.

Names are imported when they are asked for, so that the command line, which imports `services.client.references`, starts
without gRPC.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from services.client._async.client import AsyncClient
    from services.client._sync.client import Client
    from services.client.endpoint import Endpoint
    from services.client.files import Progress, json_lines

__all__ = ["AsyncClient", "Client", "Endpoint", "Progress", "json_lines"]

_HOMES = {
    "AsyncClient": "services.client._async.client",
    "Client": "services.client._sync.client",
    "Endpoint": "services.client.endpoint",
    "Progress": "services.client.files",
    "json_lines": "services.client.files",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
