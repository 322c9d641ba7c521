"""A program that the embedded default runs: how it starts, when it is ready, how it stops, and its identity."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from services.mesh.errors import PlatformError
from services.mesh.processes import procfs

_LAUNCHER = Path(__file__).with_name("launch.py")
_POLL_SECONDS = 0.02
_ADOPTED_POLL_SECONDS = 0.2
_PROBE_SECONDS = 5.0
_SESSION_SECONDS = 5.0
LOG_TAIL_BYTES = 4000


class StartFailed(PlatformError):
    """A program of the embedded default did not come up; the message ends with its last log lines."""

    code = "UNAVAILABLE"


class Running(Protocol):
    """A process of ours: one that we started, or one that we found."""

    @property
    def pid(self) -> int: ...

    @property
    def returncode(self) -> int | None: ...

    async def wait(self) -> int: ...

    def send_signal(self, signal: int) -> None: ...


class Adopted:
    """A process that an earlier supervisor started. Its exit code is lost: `returncode` is 0 once it is gone."""

    def __init__(self, identity: procfs.ProcessId) -> None:
        self.identity = identity

    @property
    def pid(self) -> int:
        return self.identity.pid

    @property
    def returncode(self) -> int | None:
        return None if self.identity.alive() else 0

    async def wait(self) -> int:
        while self.identity.alive():  # noqa: ASYNC110 - /proc tells nobody of an end
            await asyncio.sleep(_ADOPTED_POLL_SECONDS)
        return 0

    def send_signal(self, signal: int) -> None:
        if self.identity.alive():
            os.kill(self.pid, signal)


async def _at_once() -> bool:
    return True


async def _nothing() -> None:
    return


@dataclass(frozen=True)
class User:
    """The user to run as instead of root."""

    uid: int
    gid: int
    # Whether it may pass, and read, what is closed to it.
    passes: bool = False


@dataclass(frozen=True)
class Program:
    """What to run. `arguments[0]` is an absolute path; secrets belong in `environment` or in files, never here."""

    name: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)
    log: Path
    # Called before each start, the restarts included: makes folders, removes what a crash left.
    prepare: Callable[[], Awaitable[None]] = _nothing
    # Asked again and again after a start until it says yes; an exception counts as no.
    ready: Callable[[], Awaitable[bool]] = _at_once
    ready_seconds: float = 60.0
    # What to do about a start that failed; empty where that is not known.
    remedy: Callable[[], str] = str
    # How often it is started before it is given up that it comes up at all.
    first_starts: int = 1
    # Asked from time to time while it runs; None asks `ready`. It must not fail merely because there is much to do.
    answers: Callable[[], Awaitable[bool]] | None = None
    # Whoever gives no sign for so long hangs, and is killed to be started again.
    patience_seconds: float = 60.0
    stop_signal: signal.Signals = signal.SIGTERM
    stop_seconds: float = 10.0
    # What the kernel sends it when the process that started it dies; None: it lives on.
    death_signal: signal.Signals | None = signal.SIGTERM
    user: User | None = None
    # The working directory; by default ours.
    folder: Path | None = None
    address: str = ""


async def spawn(program: Program) -> asyncio.subprocess.Process:
    """Start it in a session of its own, its output appended to its log. Does not wait until it is ready."""
    await program.prepare()
    program.log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(program.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        return await asyncio.create_subprocess_exec(
            *launcher(program.user, program.death_signal, program.folder),
            *program.arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            env=dict(program.environment),
            start_new_session=True,
        )
    finally:
        os.close(descriptor)


def launcher(user: User | None, death_signal: signal.Signals | None, folder: Path | None = None) -> list[str]:
    """The words before a command that make it run as `user`, in `folder`, and end with this process."""
    options = [] if folder is None else ["--folder", str(folder)]
    if death_signal is not None:
        options += ["--parent", str(os.getpid()), "--death-signal", str(int(death_signal))]
    if user is not None:
        options += ["--uid", str(user.uid), "--gid", str(user.gid)]
        options += ["--pass-closed-folders"] if user.passes else []
    return [sys.executable, "-I", "-S", str(_LAUNCHER), *options, "--"]


async def until_ready(program: Program, process: Running) -> None:
    """Raises StartFailed when it exits or stays unready for `ready_seconds`."""
    deadline = time.monotonic() + program.ready_seconds
    while time.monotonic() < deadline:
        if process.returncode is not None:
            raise StartFailed(
                "PROCESS_EXITED",
                f"{program.name} ended with {ending(process.returncode)} before it was ready{_reasons(program)}",
            )
        with contextlib.suppress(Exception):
            # Not wait_for: before Python 3.12 it loses a cancellation that comes as its awaitable ends.
            async with asyncio.timeout(_PROBE_SECONDS):
                # A probe may have met another process on its port while ours was dying of that.
                if await program.ready() and process.returncode is None:
                    return
        await asyncio.sleep(_POLL_SECONDS)
    raise StartFailed(
        "PROCESS_NOT_READY",
        f"{program.name} was not ready after {program.ready_seconds:.0f} s{_reasons(program)}",
    )


def _reasons(program: Program) -> str:
    """The end of its log, and what to do about it where that is known."""
    remedy = program.remedy()
    return f"\n{log_tail(program.log)}" + (f"\n{remedy}" if remedy else "")


async def stop(program: Program, process: Running) -> bool:
    """Its stop signal, then after the grace period SIGKILL to its whole session. True when it ended by itself."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(program.stop_signal)
    try:
        async with asyncio.timeout(program.stop_seconds):
            await process.wait()
    except TimeoutError:
        await end_session(process.pid)
        await process.wait()
        return False
    await end_session(process.pid)
    return True


async def end_session(leader: int) -> None:
    """Kill what a program left in its session, and see it gone: Ray's agents outlive a Ray that was killed.

    Again and again, as a member may fork between being listed and being killed. Gives up on one that the kernel holds.
    """
    deadline = time.monotonic() + _SESSION_SECONDS
    while (members := procfs.session_members(leader)) and time.monotonic() < deadline:
        procfs.kill(members)
        await asyncio.sleep(_POLL_SECONDS)


@contextlib.asynccontextmanager
async def running(program: Program) -> AsyncIterator[asyncio.subprocess.Process]:
    """The program, ready inside the block and gone after it."""
    process = await spawn(program)
    try:
        await until_ready(program, process)
        yield process
    finally:
        await stop(program, process)


def ending(returncode: int) -> str:
    """`exit code 3` or `signal SIGKILL`."""
    if returncode >= 0:
        return f"exit code {returncode}"
    try:
        return f"signal {signal.Signals(-returncode).name}"
    except ValueError:
        return f"signal {-returncode}"


def log_tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log, indented; empty when there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(f"  | {line}" for line in text.splitlines()[-lines:])
