"""PostgreSQL, NATS and Ray as child processes: what `rlhf up` and the tests use where nothing is set up.

Loaded when first asked for: the command line uses the small parts of this package and should not wait for gRPC.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from services.supervisor.embedded.home import Home
    from services.supervisor.embedded.nats_server import Nats, nats
    from services.supervisor.embedded.ports import free_port
    from services.supervisor.embedded.postgres_server import Postgres, postgres
    from services.supervisor.embedded.process import StartFailed
    from services.supervisor.embedded.ray_head import RayHead, Resources, default_resources, ray

__all__ = [
    "Home",
    "Nats",
    "Postgres",
    "RayHead",
    "Resources",
    "StartFailed",
    "default_resources",
    "free_port",
    "nats",
    "postgres",
    "ray",
]

_MODULES = {
    "home": ("Home",),
    "nats_server": ("Nats", "nats"),
    "ports": ("free_port",),
    "postgres_server": ("Postgres", "postgres"),
    "process": ("StartFailed",),
    "ray_head": ("RayHead", "Resources", "default_resources", "ray"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
