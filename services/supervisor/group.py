"""The supervisor: one per home, by a lock; it starts a plan, keeps it up, and stops it in reverse."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import signal
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.mesh.errors import FailedPrecondition, PlatformError
from services.mesh.processes import procfs
from services.supervisor import leftovers, logs, state
from services.supervisor.child import Child
from services.supervisor.embedded import Home
from services.supervisor.embedded.home import make_private, write_private
from services.supervisor.embedded.process import Adopted, Program
from services.supervisor.state import MeshState, Phase

log = logging.getLogger(__name__)

_PROBE_SECONDS = 5.0
_TELL_AGAIN_SECONDS = 1.0


@dataclass(frozen=True)
class Planned:
    """A program and the names of those that have to be ready before it starts."""

    program: Program
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """In the order of starting. Detached processes of the mesh are ended between services and foundations."""

    foundations: Sequence[Planned]
    services: Sequence[Planned]
    # What `run/endpoints.json` says once everything is ready.
    endpoints: Mapping[str, Any] = field(default_factory=dict)


@contextlib.contextmanager
def locked(home: Home) -> Iterator[None]:
    """Hold the home; the kernel lets go when we die, however we do. Raises FailedPrecondition where another does."""
    descriptor = os.open(home.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise FailedPrecondition("ALREADY_UP", f"another supervisor holds {home.root}", home=home.root) from None
    finally:
        os.close(descriptor)


class Supervisor:
    """`make_plan` gets the names of processes of an earlier supervisor that live on and may be kept.

    `keep` names those that are not tied to the supervisor's life and are taken over when they still answer.
    """

    def __init__(self, home: Home, make_plan: Callable[[Collection[str]], Plan], keep: Collection[str] = ()) -> None:
        self._home = home
        self._make_plan = make_plan
        self._keep = keep
        self._stopping = asyncio.Event()
        self._children: dict[str, Child] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._services: list[str] = []
        self._telling: asyncio.TimerHandle | None = None
        me = procfs.identify(os.getpid())
        assert me is not None
        self.state = MeshState(supervisor=me, phase=Phase.STARTING)

    def stop(self) -> None:
        """Ask `run` to end. Also what SIGTERM, SIGINT and the end of the terminal do."""
        self._stopping.set()

    async def run(self) -> None:
        """Until told to stop. Raises StartFailed when a process does not come up; nothing is left running then."""
        loop = asyncio.get_running_loop()
        with locked(self._home):
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                loop.add_signal_handler(number, self.stop)
            rotation = asyncio.create_task(logs.keep_short(self._home.logs))
            try:
                await self._up()
                await self._until(self._stopping.wait())
            except BaseException as error:
                await self._down(Phase.FAILED, error.message if isinstance(error, PlatformError) else repr(error))
                raise
            else:
                await self._down(Phase.STOPPED)
            finally:
                rotation.cancel()
                if self._telling is not None:
                    self._telling.cancel()

    async def _up(self) -> None:
        started = time.monotonic()
        self._home.endpoints.unlink(missing_ok=True)
        found = leftovers.find(state.read(self._home.state))
        kept = {name: each for name, each in found.items() if name in self._keep}
        await leftovers.end(each for name, each in found.items() if name not in kept)
        make_private(self._home.temporary)
        plan = self._make_plan(kept)
        self._services = [each.program.name for each in plan.services]
        for planned in (*plan.foundations, *plan.services):
            needs = [self._children[name] for name in planned.needs]
            self._children[planned.program.name] = Child(planned.program, needs, self._write)
        for name, each in kept.items():
            await self._take_over(name, each)
        self._write()
        for name, child in self._children.items():
            self._tasks[name] = asyncio.create_task(child.run(), name=name)
        await self._until(_all_ready(self._children.values()))
        if self._stopping.is_set():
            return
        write_private(self._home.endpoints, json.dumps({**plan.endpoints, "pid": os.getpid()}, indent=2))
        self._write(Phase.READY, seconds=time.monotonic() - started)
        log.info("the mesh is ready after %.1f s", self.state.seconds)

    async def _take_over(self, name: str, found: procfs.ProcessId) -> None:
        child = self._children.get(name)
        with contextlib.suppress(Exception):
            async with asyncio.timeout(_PROBE_SECONDS):
                if child is not None and await child.program.ready():
                    log.info("%s of an earlier supervisor goes on, pid %d", name, found.pid)
                    child.adopt(Adopted(found))
                    return
        await leftovers.end([found])

    async def _until(self, wanted: Any) -> None:
        """Wait for `wanted` or for the order to stop. Raises what ended a child's task, which should not end."""
        waiting = [asyncio.ensure_future(wanted), asyncio.ensure_future(self._stopping.wait())]
        try:
            done, _ = await asyncio.wait([*waiting, *self._tasks.values()], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in waiting:
                task.cancel()

    async def _down(self, phase: Phase, message: str = "") -> None:
        self._write(Phase.STOPPING)
        self._home.endpoints.unlink(missing_ok=True)
        names = list(self._children)
        for name in reversed(self._services):
            await self._end(name)
        running = [child.state.id.pid for child in self._children.values() if child.state.id is not None]
        await leftovers.end(leftovers.detached(self._home.root, running))
        for name in reversed([name for name in names if name not in self._services]):
            await self._end(name)
        self._home.remove_temporary()
        self._write(phase, message=message)
        log.info("the mesh is %s", phase)

    async def _end(self, name: str) -> None:
        task = self._tasks.pop(name, None)
        while task is not None and not task.done():
            # Again, should a library below have swallowed the cancellation: a stop must not hang on that.
            task.cancel()
            await asyncio.wait([task], timeout=1)
        await self._children[name].stop()

    def _write(self, phase: Phase | None = None, seconds: float | None = None, message: str | None = None) -> None:
        self.state = MeshState(
            supervisor=self.state.supervisor,
            phase=phase or self.state.phase,
            seconds=self.state.seconds if seconds is None else seconds,
            message=self.state.message if message is None else message,
            processes=[child.state for child in self._children.values()],
        )
        try:
            state.write(self._home.state, self.state)
        except OSError as error:
            # A full disk is no reason to let the mesh fall: it is told again, until it is told.
            log.error("the state of the mesh cannot be written: %s", error)
            if self._telling is None:
                self._telling = asyncio.get_running_loop().call_later(_TELL_AGAIN_SECONDS, self._tell_again)

    def _tell_again(self) -> None:
        self._telling = None
        self._write()


async def _all_ready(children: Collection[Child]) -> None:
    for child in children:
        await child.ready.wait()
