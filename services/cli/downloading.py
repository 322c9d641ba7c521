"""Downloads as a person sees them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from services.cli import interrupts, output
from services.mesh.errors import AlreadyExists

if TYPE_CHECKING:
    from services.client.files import OnProgress, Progress


@contextlib.contextmanager
def shown() -> Iterator[OnProgress]:
    """A bar, on a terminal. A file in the way is told with the flag that replaces it."""
    from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    console = output.messages()
    columns = (BarColumn(bar_width=None), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(compact=True))
    bars = Bars(*columns, console=console, transient=True, disable=not console.is_terminal, expand=True)
    with interrupts.same_command_goes_on(), bars:
        task = bars.add_task("")

        def on_progress(progress: Progress) -> None:
            bars.update(task, completed=progress.done, total=progress.total)

        try:
            yield on_progress
        except AlreadyExists as error:
            raise AlreadyExists(error.reason, f"{error.message}; --force replaces it", **error.metadata) from None
