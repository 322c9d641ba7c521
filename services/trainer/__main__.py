"""`python -m services.trainer`: the service."""

from __future__ import annotations

from services.mesh.service import main
from services.trainer.app import build
from services.trainer.settings import Settings

if __name__ == "__main__":
    main("trainer", lambda: build(Settings.from_env()))
