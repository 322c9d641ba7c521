"""What a command says that is interrupted and can be given again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from services.cli import output


@contextlib.contextmanager
def same_command_goes_on() -> Iterator[None]:
    """Around a transfer that keeps what it has: Ctrl-C cancels the task that it is in."""
    try:
        yield
    except asyncio.CancelledError:
        output.hint("interrupted; the same command goes on where it stopped")
        raise
