"""How much memory there is to compute in, as far as it can be told without a library of the device."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path, PurePosixPath

_SECONDS = 10
_QUERY = ("nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits")


def machine_bytes(root: Path = Path("/")) -> int:
    """Of this machine, or of the container that this process is in where that is less (cgroups, both versions)."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in _limits(root):
        try:
            found.append(int(path.read_text()))
        except (OSError, ValueError):  # not there, or `max`
            continue
    return min(found)


def gpu_bytes() -> int | None:
    """Of the smallest GPU; None where NVIDIA's tool does not tell."""
    try:
        done = subprocess.run(_QUERY, check=True, capture_output=True, text=True, timeout=_SECONDS)  # noqa: S603 - fixed
        return min(int(line) for line in done.stdout.split()) << 20
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def _limits(root: Path) -> list[Path]:
    """Files that may hold a limit: of this process's group and of all above it."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found: list[Path] = []
    for _, controllers, group in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if controllers not in ("", "memory"):
            continue
        folder = root / "sys/fs/cgroup" / controllers
        name = "memory.limit_in_bytes" if controllers else "memory.max"
        path = PurePosixPath(group)
        found += [folder / one.relative_to("/") / name for one in (path, *path.parents) if one.is_absolute()]
    return found
