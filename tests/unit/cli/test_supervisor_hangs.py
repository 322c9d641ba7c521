"""A process that lives and does nothing is noticed and started again; one that is merely busy is left alone."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from services.mesh.rpc import server
from services.mesh.rpc.server import Process
from services.supervisor import group, probes, state
from services.supervisor.embedded import Home
from services.supervisor.embedded.process import Program
from services.supervisor.group import Plan, Planned, Supervisor
from services.supervisor.state import Phase, ProcessState, Stage

# Touches its file as our processes do.
BEATING = 'while :; do touch "$0"; sleep 0.05; done'


@pytest.fixture
def mesh_home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.make()
    return home


def beating(home: Home, **changes) -> Program:
    ready_file = home.run / "beating.ready"

    async def prepare() -> None:
        ready_file.unlink(missing_ok=True)

    program = Program(
        name="beating",
        arguments=("/bin/sh", "-c", BEATING, str(ready_file)),
        environment={"PATH": os.environ["PATH"]},
        log=home.log("beating"),
        prepare=prepare,
        ready=probes.file_there(ready_file),
        answers=probes.file_touched(ready_file),
        patience_seconds=1.2,
    )
    return dataclasses.replace(program, **changes)


@contextlib.asynccontextmanager
async def up(home: Home, program: Program) -> AsyncIterator[Callable[[], ProcessState]]:
    """A supervisor of one process; what it says of it."""
    supervisor = Supervisor(home, lambda kept: Plan([], [Planned(program)]))
    task = asyncio.create_task(supervisor.run())
    try:
        await until(lambda: supervisor.state.phase is Phase.READY or task.done())
        yield lambda: supervisor.state.processes[0]
    finally:
        supervisor.stop()
        await task


async def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_stopped_process_is_killed_and_started_again(mesh_home: Home) -> None:
    async with up(mesh_home, beating(mesh_home)) as shown:
        victim = shown().id
        assert victim is not None
        os.kill(victim.pid, signal.SIGSTOP)
        await until(lambda: shown().restarts == 1)
        assert shown().message == "did not answer"
        await until(lambda: shown().stage is Stage.READY)
        assert not victim.alive()
        known = state.read(mesh_home.state)
        assert known is not None
        assert known.processes == [shown()]


async def test_process_that_answers_is_left_alone_though_single_answers_fail(mesh_home: Home) -> None:
    asked = 0

    async def now_and_then() -> bool:
        nonlocal asked
        asked += 1
        if asked % 3:
            raise OSError("too much to do")
        return True

    async with up(mesh_home, beating(mesh_home, answers=now_and_then)) as shown:
        before = shown().id
        await until(lambda: asked >= 12)
        assert shown().restarts == 0
        assert shown().id == before


async def test_probe_that_never_returns_counts_as_silence(mesh_home: Home) -> None:
    async def forever() -> bool:
        await asyncio.sleep(3600)
        return True

    async with up(mesh_home, beating(mesh_home, answers=forever)) as shown:
        await until(lambda: shown().restarts == 1)
        assert shown().message == "did not answer"


async def test_process_of_the_mesh_touches_its_file_as_long_as_its_loop_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "BEAT_SECONDS", 0.05)
    process = Process("testing", tmp_path / "ready")
    touched = probes.file_touched(tmp_path / "ready")
    await process.start()
    try:
        for _ in range(3):
            async with asyncio.timeout(10):
                while not await touched():  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
    finally:
        await process.stop()
    await touched()
    await asyncio.sleep(0.2)
    assert not await touched()


async def test_a_state_that_cannot_be_written_lets_nothing_fall_and_is_written_later(
    mesh_home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a full disk, on which a process may well have died."""
    monkeypatch.setattr(group, "_TELL_AGAIN_SECONDS", 0.02)
    async with up(mesh_home, beating(mesh_home)) as shown:
        victim = shown().id
        assert victim is not None
        mesh_home.state.unlink()
        mesh_home.state.mkdir()
        os.kill(victim.pid, signal.SIGKILL)
        await until(lambda: shown().restarts == 1 and shown().stage is Stage.READY)
        mesh_home.state.rmdir()
        await until(lambda: state.read(mesh_home.state) is not None)
        told = state.read(mesh_home.state)
        assert told is not None and told.processes[0].id == shown().id != victim


async def test_what_others_lack_is_waited_for_and_not_insisted_on() -> None:
    now, there = 0.0, False

    async def probe() -> bool:
        return there

    patient = probes.patient(probe, 5, lambda: now)
    assert not await patient()
    now = 5.0
    assert not await patient()
    there = True
    assert await patient()
    there, now = False, 5.1
    assert await patient()
