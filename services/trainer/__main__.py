"""`python -m services.trainer`: the service."""

from __future__ import annotations

import uvloop

from services.mesh.telemetry.logs import configure_logging
from services.trainer.app import build
from services.trainer.settings import Settings


async def _serve() -> None:
    await build(Settings.from_env()).run()


if __name__ == "__main__":
    configure_logging("trainer")
    uvloop.run(_serve())
