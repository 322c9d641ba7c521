from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.cli.fake_mesh import FakeMesh


@pytest.fixture
async def fake_mesh(tmp_path: Path) -> AsyncIterator[FakeMesh]:
    made = FakeMesh(tmp_path / "home")
    await made.start()
    yield made
    await made.stop()
