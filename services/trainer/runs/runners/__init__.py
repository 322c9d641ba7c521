"""Where a launch plan is carried out. One file per kind of place; a target of the inventory names one.

A run outlives the worker that started it: whoever holds the job's lease finds it again by its folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from services.trainer.training.launch_plan import LaunchPlan

# The inventory: targets that a placement may name. This host is the only one so far.
TARGETS = ("local",)


class Run(Protocol):
    """One attempt's process and the folder of its files (plan, spool, output, checkpoints)."""

    folder: Path

    async def start(self, plan: LaunchPlan) -> None:
        """Write the plan and launch the process. Raises OSError."""
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
