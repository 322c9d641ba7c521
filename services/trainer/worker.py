"""`python -m services.trainer.worker`: leases jobs, starts their runs and follows them."""

from __future__ import annotations

from services.mesh.service import main
from services.trainer.app import build_worker
from services.trainer.settings import Settings

if __name__ == "__main__":
    main("trainer.worker", lambda: build_worker(Settings.from_env(worker=True)))
