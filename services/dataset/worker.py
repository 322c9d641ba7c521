"""`python -m services.dataset.worker`: leases committed uploads and makes versions of them."""

from __future__ import annotations

import uvloop

from services.dataset.app import build_worker
from services.dataset.settings import Settings
from services.mesh.telemetry.logs import configure_logging


async def _work() -> None:
    await build_worker(Settings.from_env(worker=True)).run()


if __name__ == "__main__":
    configure_logging("dataset.worker")
    uvloop.run(_work())
