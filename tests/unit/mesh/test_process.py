"""A process starts its parts in order, stops them in reverse, and ends with the error of a routine that failed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.mesh.rpc.server import Process


class Diary(Process):
    """Writes down what starts and stops."""

    def __init__(self, ready_file: Path | None = None) -> None:
        super().__init__("diary", ready_file)
        self.lines: list[str] = []

    def add_part(self, name: str, *, fails: bool = False) -> None:
        @contextlib.asynccontextmanager
        async def part() -> AsyncIterator[None]:
            if fails:
                raise RuntimeError(name)
            self.lines.append(f"+{name}")
            yield
            self.lines.append(f"-{name}")

        self.add(part())

    def add_line(self, name: str) -> None:
        async def step() -> None:
            self.lines.append(name)

        self.add_step(step)

    def add_endless(self, name: str) -> None:
        async def endless() -> None:
            self.lines.append(f"+{name}")
            try:
                await asyncio.Event().wait()
            finally:
                self.lines.append(f"-{name}")

        self.add_routine(name, endless)


async def test_order(tmp_path: Path) -> None:
    process = Diary(tmp_path / "ready")
    process.add_line("migrate")
    process.add_part("pool")
    process.add_part("bus")
    process.add_endless("relay")
    await process.start()
    assert (tmp_path / "ready").exists()
    await asyncio.sleep(0)
    await process.stop()
    assert process.lines == ["migrate", "+pool", "+bus", "+relay", "-relay", "-bus", "-pool"]


async def test_what_had_started_is_stopped_when_a_later_part_fails(tmp_path: Path) -> None:
    process = Diary(tmp_path / "ready")
    process.add_part("pool")
    process.add_part("bus", fails=True)
    process.add_part("never")
    with pytest.raises(RuntimeError, match="bus"):
        await process.run()
    assert process.lines == ["+pool", "-pool"]
    assert not (tmp_path / "ready").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_stops_in_order(number: signal.Signals) -> None:
    process = Diary()
    process.add_part("pool")
    process.add_endless("relay")
    asyncio.get_running_loop().call_later(0.05, os.kill, os.getpid(), number)
    await asyncio.wait_for(process.run(), 5)
    assert process.lines == ["+pool", "+relay", "-relay", "-pool"]


async def test_a_routine_that_fails_ends_the_process_with_its_error() -> None:
    process = Diary()
    process.add_part("pool")

    async def failing() -> None:
        await asyncio.sleep(0.01)
        raise LookupError("the reason")

    process.add_routine("failing", failing)
    with pytest.raises(LookupError, match="the reason"):
        await asyncio.wait_for(process.run(), 5)
    assert process.lines == ["+pool", "-pool"]


async def test_a_routine_that_ends_by_itself_has_failed_too() -> None:
    process = Diary()

    async def short() -> None:
        await asyncio.sleep(0.01)

    process.add_routine("short", short)
    with pytest.raises(RuntimeError, match="short"):
        await asyncio.wait_for(process.run(), 5)


async def test_starting_and_stopping_can_be_logged(caplog: pytest.LogCaptureFixture) -> None:
    """`extra` must not hold a name that a log record has already, which raises only when the level is enabled."""
    caplog.set_level(logging.DEBUG)
    process = Diary()
    await process.start()
    await process.stop()
    assert {"started", "stopped"} <= {record.getMessage() for record in caplog.records}
