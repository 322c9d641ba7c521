"""One process of the mesh: started when those it needs are ready, started again when it dies or hangs, stopped at the
end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from services.mesh.processes import procfs
from services.supervisor.embedded import process
from services.supervisor.embedded.process import Program, Running, StartFailed
from services.supervisor.state import ProcessState, Stage

log = logging.getLogger(__name__)

_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 10.0
# Who ran this long before it died starts again without delay.
_STEADY_SECONDS = 30.0
# So often it is asked for a sign of life within the time that it may be silent.
_ASKED = 6
# It takes more than one unanswered question: the machine, or we, may have slept meanwhile.
_SILENCES = 3


class Child:
    """`run` is its life; `stop` its end. `changed` is called after each change of `state`."""

    def __init__(self, program: Program, needs: Sequence[Child], changed: Callable[[], None]) -> None:
        self.program = program
        self.state = ProcessState(name=program.name, address=program.address)
        self.ready = asyncio.Event()
        self._needs = needs
        self._changed = changed
        self._process: Running | None = None

    def adopt(self, found: Running) -> None:
        """Take over a process that is ready already."""
        self._process = found
        self._set(Stage.READY, id=procfs.identify(found.pid), adopted=True)
        self.ready.set()

    async def run(self) -> None:
        """Raises StartFailed when it does not come up at first; later failures are tried again for ever."""
        for needed in self._needs:
            await needed.ready.wait()
        if self._process is None:
            await self._start_first()
            self.ready.set()
        pause = _FIRST_PAUSE_SECONDS
        while True:
            steady = await self._watch()
            pause = _FIRST_PAUSE_SECONDS if steady else min(pause * 2, _LONGEST_PAUSE_SECONDS)
            await asyncio.sleep(pause)
            try:
                await self._start(Stage.RESTARTING)
            except (StartFailed, OSError) as error:
                log.error("%s did not start again: %s", self.program.name, error)
                await self._end()

    async def stop(self) -> None:
        """Nothing of it is left afterwards."""
        if self._process is not None:
            ended = await process.stop(self.program, self._process)
            log.info("%s %s", self.program.name, "stopped" if ended else "had to be killed")
            stage = Stage.FAILED if self.state.stage is Stage.FAILED else Stage.STOPPED
            message = self.state.message if stage is Stage.FAILED else "" if ended else "had to be killed"
            self._set(stage, id=None, message=message)
        elif self.state.stage is not Stage.FAILED:
            self._set(Stage.STOPPED)

    async def _start_first(self) -> None:
        for left in reversed(range(self.program.first_starts)):
            try:
                await self._start(Stage.STARTING)
                return
            except StartFailed as error:
                if not left:
                    raise
                log.warning("%s did not start, and is tried again: %s", self.program.name, error)
                await self._end()

    async def _start(self, stage: Stage) -> None:
        started = time.monotonic()
        self._set(stage)
        try:
            running = self._process = await process.spawn(self.program)
            self._set(stage, id=procfs.identify(running.pid), adopted=False)
            await process.until_ready(self.program, running)
        except (StartFailed, OSError) as error:
            self._set(Stage.FAILED, message=str(error))
            raise
        self._set(Stage.READY, ready_seconds=time.monotonic() - started)
        log.info("%s is ready, pid %d", self.program.name, running.pid)

    async def _watch(self) -> bool:
        """Wait for its end. True when it had run for long."""
        if self._process is None:
            return False
        since = time.monotonic()
        health = asyncio.create_task(self._until_silent(self._process), name=f"health of {self.program.name}")
        try:
            code = await self._process.wait()
        finally:
            health.cancel()
        await process.end_session(self._process.pid)
        self._process = None
        message = "did not answer" if health.done() and not health.cancelled() else process.ending(code)
        log.warning("%s ended with %s; starting it again", self.program.name, message)
        self._set(Stage.RESTARTING, id=None, restarts=self.state.restarts + 1, message=message)
        return time.monotonic() - since > _STEADY_SECONDS

    async def _until_silent(self, running: Running) -> None:
        """Kill it when it has given no sign of life for too long. A process that is stopped takes no other signal."""
        pause = self.program.patience_seconds / _ASKED
        silences, last = 0, time.monotonic()
        while silences < _SILENCES or time.monotonic() - last < self.program.patience_seconds:
            await asyncio.sleep(pause)
            if await self._answers(pause):
                silences, last = 0, time.monotonic()
            else:
                silences += 1
        log.error("%s has not answered for %.0f s; killing it", self.program.name, time.monotonic() - last)
        procfs.kill([running.pid])

    async def _answers(self, seconds: float) -> bool:
        with contextlib.suppress(Exception):
            async with asyncio.timeout(seconds):
                return await (self.program.answers or self.program.ready)()
        return False

    async def _end(self) -> None:
        """After a start that failed: it may live without being ready."""
        if self._process is not None:
            await process.stop(self.program, self._process)
            self._set(Stage.RESTARTING, id=None, restarts=self.state.restarts + 1)
            self._process = None

    def _set(self, stage: Stage, **changes: Any) -> None:
        self.state = msgspec.structs.replace(self.state, stage=stage, **changes)
        self._changed()
