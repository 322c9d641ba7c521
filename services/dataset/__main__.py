"""`python -m services.dataset`: the service."""

from __future__ import annotations

from services.dataset.app import build
from services.dataset.settings import Settings
from services.mesh.service import main

if __name__ == "__main__":
    main("dataset", lambda: build(Settings.from_env()))
