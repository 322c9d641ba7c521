"""Places where runs are carried out. One file each; a job's placement names one, and `local` is this host.

A run outlives the worker that started it: whoever holds the job's lease finds it again by its folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from services.mesh.registry import Registry


@dataclass(frozen=True)
class Entrypoint:
    """What carries out the plans of a service: a module that is given the run's folder, the Python that runs it, its
    whole environment, and the socket of a fork server, None where each starts anew."""

    python: str
    module: str
    environment: Mapping[str, str]
    fork_server: Path | None = None


class Run(Protocol):
    """One attempt's process and the folder of its files (plan, spool, output, checkpoints)."""

    folder: Path

    async def start(self, plan: bytes) -> None:
        """Write the plan, which is a document of the service, and launch the process. Raises OSError."""
        ...

    def is_alive(self) -> bool:
        """Whether the process still runs, whoever started it."""
        ...

    def is_stopped(self) -> bool:
        """Whether the process does nothing until a signal lets it go on."""
        ...

    def write_stacks(self) -> None:
        """Have each process write into the run's folder what it is doing, as far as it can; takes some seconds."""
        ...

    def request_stop(self) -> None:
        """Ask the run to end at its next step boundary."""
        ...

    def was_told_to_stop(self) -> bool:
        """Whether `request_stop` or a signal has asked the run to end, however it ended then."""
        ...

    def kill(self) -> None:
        """End the process and what it started, now."""
        ...

    def clear(self) -> None:
        """End the processes that one that is gone has left, and remove what it kept outside its folder."""
        ...


# By the target that a placement names; makes the run in a folder, whether it was started or is to be.
runners: Registry[Callable[[Path, Entrypoint], Run]] = Registry("target", "services.mesh.runs.runners")
