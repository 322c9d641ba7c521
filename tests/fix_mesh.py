"""A whole mesh in a home of its own, driven by the command as a user would."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from services.mesh.processes import procfs
from services.supervisor import leftovers
from services.supervisor.embedded import Home


class Mesh:
    """A home and the command over it; `settings` are more of its environment."""

    def __init__(self, root: Path, **settings: str) -> None:
        self.home = Home(root)
        kept = {key: value for key, value in os.environ.items() if not key.startswith("RLHF_")}
        self.environment = {**kept, "RLHF_HOME": str(root), "COLUMNS": "200", **settings}
        # Before the command: what it is run by.
        self.prefix: tuple[str, ...] = ()

    def rlhf(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words), env=self.environment, capture_output=True, text=True, timeout=300, check=False
        )

    def command(self, *words: str) -> list[str]:
        return [*self.prefix, sys.executable, "-m", "services.cli", *words]

    def status(self) -> dict[str, Any]:
        return json.loads(self.rlhf("status", "-o", "json").stdout)

    def pids(self) -> dict[str, int]:
        return {each["name"]: each["pid"] for each in self.status()["processes"]}

    def endpoints(self) -> dict[str, Any]:
        return json.loads(self.home.endpoints.read_text())

    def processes(self) -> list[int]:
        """Everything that belongs to this mesh, found without asking the supervisor."""
        marked = [each.pid for each in procfs.with_variable(leftovers.MARK, str(self.home.root))]
        return marked + procfs.in_folder(self.home.postgres / "data")


@contextlib.contextmanager
def embedded_mesh(root: Path, **settings: str) -> Iterator[Mesh]:
    """A mesh that is down at first and is taken down after the block, whatever happened in it; then nothing is left."""
    mesh = Mesh(root, **settings)
    try:
        yield mesh
    finally:
        done = mesh.rlhf("down")
        left = mesh.processes()
        procfs.kill(left)
        files = [folder for folder in (mesh.home.temporary, mesh.home.ray_temporary) if folder.exists()]
        mesh.home.remove_temporary()
    assert done.returncode == 0, done.stderr
    assert left == []
    assert files == []
