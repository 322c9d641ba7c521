"""`python -m services.trainer.worker`: leases jobs, starts their runs and follows them."""

from __future__ import annotations

import uvloop

from services.mesh.telemetry.logs import configure_logging
from services.trainer.app import build_worker
from services.trainer.settings import Settings


async def _work() -> None:
    await build_worker(Settings.from_env(worker=True)).run()


if __name__ == "__main__":
    configure_logging("trainer.worker")
    uvloop.run(_work())
