"""The processes of a run besides its own, written down by the run: whoever ends it ends them too."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec

from services.mesh.processes.procfs import ProcessId
from services.mesh.runs.files import PROCESSES_FILE


@dataclass(frozen=True)
class RunProcess:
    name: str
    id: ProcessId


def write(folder: Path, processes: Iterable[RunProcess]) -> None:
    """Raises OSError."""
    partial = folder / f"{PROCESSES_FILE}.partial"
    partial.write_bytes(msgspec.json.encode([asdict(each) for each in processes]))
    partial.replace(folder / PROCESSES_FILE)


def read(folder: Path) -> list[RunProcess]:
    """Those that live; none where the run has written none down."""
    try:
        found = msgspec.json.decode((folder / PROCESSES_FILE).read_bytes(), type=list[RunProcess])
    except (OSError, msgspec.DecodeError):
        return []
    return [each for each in found if each.id.alive()]
