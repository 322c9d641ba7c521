"""`rlhf token rotate` over a real mesh."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.mesh import identity
from tests.fix_mesh import Mesh, embedded_mesh

# Nothing is trained here, and only trainings wait for Ray.
NO_RAY = {"RLHF_RAY_ADDRESS": "127.0.0.1:1"}


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Mesh]:
    with embedded_mesh(tmp_path / "home", **NO_RAY) as mesh:
        done = mesh.rlhf("up")
        assert done.returncode == 0, done.stderr
        yield mesh


def test_another_token_takes_the_place_of_the_old_one(mesh: Mesh, tmp_path: Path) -> None:
    before, old = mesh.pids(), identity.read_token(mesh.home.token)
    (tmp_path / "old").write_text(old)
    done = mesh.rlhf("token", "rotate")
    assert done.returncode == 0, done.stderr
    new = mesh.rlhf("token").stdout.strip()
    assert new != old and len(new) == len(old)
    assert mesh.home.token.stat().st_mode & 0o777 == 0o600
    refused = mesh.rlhf("--token-file", str(tmp_path / "old"), "model", "list")
    assert refused.returncode == 5 and re.search("token is not the one", refused.stderr), refused.stderr
    assert mesh.rlhf("model", "list").returncode == 0
    after = mesh.pids()
    assert {name for name in before if after[name] != before[name]} == {
        "dataset", "trainer", "trainer.worker", "gateway",
    }  # fmt: skip
