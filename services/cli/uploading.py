"""A file on its way into a dataset, as a person sees it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from services.cli import interrupts, output

if TYPE_CHECKING:
    from rlhf.dataset.v1.dataset_pb2 import Upload

    from services.client import AsyncClient, Progress


async def upload(client: AsyncClient, dataset: str, path: Path, options: Upload | None = None) -> Upload:
    """Upload `path` into a dataset and follow until SUCCEEDED or FAILED. Goes on with an upload that broke off."""
    with interrupts.same_command_goes_on(), contextlib.closing(_Shown(path.name)) as shown:
        return await client.uploads.upload(dataset, path, options=options, on_progress=shown.take)


class _Shown:
    """A bar for each phase with bytes, a line for the rows that are checked; on a terminal."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._phase = ""
        self._stack = contextlib.ExitStack()
        self._update: Callable[[Progress], None] = lambda progress: None

    def take(self, progress: Progress) -> None:
        if progress.phase != self._phase:
            self._phase = progress.phase
            self._stack.close()
            if progress.phase == "sending" and progress.done:
                output.hint(f"going on at byte {progress.done:,} of an upload that broke off")
            self._update = self._status() if progress.phase == "checking" else self._bar()
        self._update(progress)

    def close(self) -> None:
        self._stack.close()

    def _status(self) -> Callable[[Progress], None]:
        status = self._stack.enter_context(output.messages().status("checking rows"))
        return lambda progress: status.update(f"checking rows: {progress.done:,} so far")

    def _bar(self) -> Callable[[Progress], None]:
        from rich import progress as bars

        columns = (
            bars.TextColumn("{task.description}", markup=False),
            bars.BarColumn(bar_width=None),
            bars.DownloadColumn(),
            bars.TransferSpeedColumn(),
            bars.TimeRemainingColumn(compact=True),
        )
        console = output.messages()
        shown = bars.Progress(*columns, console=console, transient=True, disable=not console.is_terminal, expand=True)
        task = self._stack.enter_context(shown).add_task(f"{self._phase} {self._name}")
        return lambda progress: shown.update(task, completed=progress.done, total=progress.total)
