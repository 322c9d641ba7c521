"""`python -m services.dataset`: the service."""

from __future__ import annotations

import uvloop

from services.dataset.app import build
from services.dataset.settings import Settings
from services.mesh.telemetry.logs import configure_logging


async def _serve() -> None:
    await build(Settings.from_env()).run()


if __name__ == "__main__":
    configure_logging("dataset")
    uvloop.run(_serve())
