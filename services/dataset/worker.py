"""`python -m services.dataset.worker`: leases committed uploads and makes versions of them."""

from __future__ import annotations

from services.dataset.app import build_worker
from services.dataset.settings import Settings
from services.mesh.service import main

if __name__ == "__main__":
    main("dataset.worker", lambda: build_worker(Settings.from_env(worker=True)))
