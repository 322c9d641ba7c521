"""How long `rlhf up` takes and what it occupies: `python -m tests.bench.bench_up [rounds]`. Prints; asserts nothing.

Each round starts a mesh in a fresh home (PostgreSQL makes its cluster, the schemas are migrated), looks at the memory
of its processes, stops it, starts it once more on the same data, and stops it. Memory is PSS: pages that several
processes share are divided among them. The time is that of the whole command, from the shell's view.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from services.supervisor import state
from tests.fix_mesh import Mesh, embedded_mesh

_MIB = 1 << 20


def up(mesh: Mesh, seconds: defaultdict[str, list[float]], memory: defaultdict[str, list[float]]) -> None:
    """Start it, note the seconds of the whole and of each part and their MiB, and stop it."""
    start = time.perf_counter()
    done = mesh.rlhf("up")
    seconds["rlhf up"].append(time.perf_counter() - start)
    assert done.returncode == 0, done.stderr
    known = state.read(mesh.home.state)
    assert known is not None
    seconds["supervisor, until all is ready"].append(known.seconds)
    for process in known.processes:
        seconds[process.name].append(process.ready_seconds)
    occupied = {each["name"]: each["memoryBytes"] / _MIB for each in mesh.status()["processes"]}
    for name, mebibytes in (occupied | {"all": sum(occupied.values())}).items():
        memory[name].append(mebibytes)
    assert mesh.rlhf("down").returncode == 0


def table(title: str, columns: dict[str, defaultdict[str, list[float]]]) -> None:
    print(f"{title:32}" + "".join(f"{name:>28}" for name in columns))
    for part in next(iter(columns.values())):
        cells = (
            f"{statistics.median(of[part]):.2f} ({min(of[part]):.2f}–{max(of[part]):.2f})" for of in columns.values()
        )
        print(f"{part:32}" + "".join(f"{cell:>28}" for cell in cells))


def main(rounds: int) -> None:
    first: defaultdict[str, list[float]] = defaultdict(list)
    again: defaultdict[str, list[float]] = defaultdict(list)
    memory: defaultdict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder, embedded_mesh(Path(folder) / "home") as mesh:
            up(mesh, first, memory)
            up(mesh, again, defaultdict(list))
    print(f"{rounds} rounds; median (least–most); load {os.getloadavg()[0]:.1f}")
    table("seconds", {"fresh home": first, "same home again": again})
    table("MiB (PSS), idle", {"fresh home": memory})


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
