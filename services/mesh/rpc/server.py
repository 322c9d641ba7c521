"""One process of the mesh: routines that start in order and stop in reverse, with or without a gRPC server on top."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from services.mesh import addresses, identity
from services.mesh.artifacts.disk_space import DiskSpace
from services.mesh.rpc import reflection
from services.mesh.rpc.instrumentation import Observed
from services.mesh.rpc.interceptors import Errors, Identity
from services.mesh.settings import DISK, MeshSettings, TelemetrySettings
from services.mesh.telemetry.exporters import exporting

log = logging.getLogger(__name__)

STOP_GRACE_SECONDS = 5.0
# Between two touches of the ready file.
BEAT_SECONDS = 1.0
_OPTIONS: Sequence[tuple[str, Any]] = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", 4 * 1024 * 1024),
    ("grpc.max_concurrent_streams", 1000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
)


class Process:
    """Starts what is added to it in order, runs until told to stop or a routine fails, stops in reverse.

    `start` and `stop` are for tests and for `run`, which adds what there is once in a process: signals and exporters.
    """

    def __init__(self, name: str, ready_file: Path | None = None, telemetry: TelemetrySettings | None = None) -> None:
        self.name = name
        self._ready_file = ready_file
        self._telemetry = telemetry or TelemetrySettings()
        self._starts: list[Callable[[AsyncExitStack], Awaitable[None]]] = []
        self._stack = AsyncExitStack()
        self._stopping = asyncio.Event()
        self._failure: BaseException | None = None

    def add(self, resource: contextlib.AbstractAsyncContextManager[Any]) -> None:
        """Something that is entered at start and exited at stop."""

        async def enter(stack: AsyncExitStack) -> None:
            await stack.enter_async_context(resource)

        self._starts.append(enter)

    def add_step(self, step: Callable[[], Awaitable[None]]) -> None:
        """Something to do once at start, such as migrations."""

        async def do(stack: AsyncExitStack) -> None:
            await step()

        self._starts.append(do)

    def add_routine(self, name: str, routine: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """A coroutine that runs as long as the process; when it fails or ends, the process ends with its error."""

        async def launch(stack: AsyncExitStack) -> None:
            task = asyncio.create_task(routine(), name=name)
            task.add_done_callback(self._routine_done)
            stack.push_async_callback(_cancelled, task)

        self._starts.append(launch)

    async def start(self) -> None:
        try:
            for start in self._starts:
                await start(self._stack)
        except BaseException:
            await self._stack.aclose()
            raise
        if self._ready_file is not None:
            self._ready_file.touch()
            beat = asyncio.create_task(_beat(self._ready_file), name="heartbeat")
            self._stack.push_async_callback(_cancelled, beat)
        log.info("started")

    async def stop(self) -> None:
        await self._stack.aclose()
        log.info("stopped")

    async def run(self) -> None:
        """Until SIGTERM, SIGINT or the failure of a routine, which is raised."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        async with exporting(self.name, self._telemetry):
            await self.start()
            try:
                await self._stopping.wait()
            finally:
                await self.stop()
        if self._failure is not None:
            raise self._failure

    def _routine_done(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or self._stopping.is_set():
            return
        # One that just returns has left its work undone, and nobody would notice.
        error = task.exception() or RuntimeError(f"routine {task.get_name()} ended")
        log.error("routine %s failed", task.get_name(), exc_info=error)
        self._failure = error
        self._stopping.set()


class Server(Process):
    """A Process with a gRPC server: health, reflection, identity and errors on every method.

    `port` is the one it listens on, known after `start`; 0 where it is a socket. `also` are more addresses, none or
    some of them empty.
    """

    def __init__(
        self, name: str, settings: MeshSettings, observed: Observed | None = None, also: Sequence[str] = ()
    ) -> None:
        super().__init__(name, settings.ready_file, settings.telemetry)
        self._settings = settings
        self._also = [address for address in also if address]
        self._observed = observed or Observed()
        self._token = identity.read_token(settings.token_file)
        self._services: dict[str, Callable[[grpc.aio.Server], None]] = {}
        # What health says of each name.
        self._states: dict[str, bool] = {"": True}
        self._health: Any = None
        self.port = 0

    def serve(self, service: str, register: Callable[[grpc.aio.Server], None]) -> None:
        """Add the servicer of `service`, a full proto name, by its generated `add_…_to_server`."""
        self._services[service] = register
        self._states[service] = True

    def watch_disk(self, *folders: Path) -> None:
        """Let health say, under a name of its own, whether the disks of the home, of the artifact store and of
        `folders` have room."""
        told = functools.partial(self.set_serving, DISK)
        store = self._settings.artifacts_folder
        watched = (self._settings.home, *([store] if store else []), *folders)
        space = DiskSpace(watched, self._settings.disk_low_bytes, told)
        self.add_routine("disk space", space.run)

    async def set_serving(self, service: str, serving: bool) -> None:
        """What health says of `service` from now on; each is serving from the start.

        So it says of NATS whether it is there; `""` is serving without it.
        """
        self._states[service] = serving
        if self._health is not None:
            states = health_pb2.HealthCheckResponse
            await self._health.set(service, states.SERVING if serving else states.NOT_SERVING)

    async def start(self) -> None:
        self.add(self._serving())
        await super().start()

    @contextlib.asynccontextmanager
    async def _serving(self) -> AsyncIterator[None]:
        """The last thing to start and the first to stop: the port opens once everything behind it is there."""
        # Made here because it belongs to the event loop that runs when it is made.
        interceptors = [self._observed, Errors(), Identity(self._token)]
        server = grpc.aio.server(interceptors=interceptors, options=_OPTIONS)
        for register in self._services.values():
            register(server)
        servicer = health.aio.HealthServicer()  # pyright: ignore[reportAttributeAccessIssue]
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        reflection.enable(server, (*self._services, health.SERVICE_NAME))
        self.port = _listen(server, self._settings.listen, self._settings)
        for address in self._also:
            _listen(server, address, self._settings)
        await server.start()
        self._health = servicer
        for service, serving in tuple(self._states.items()):
            await self.set_serving(service, serving)
        log.info(
            "listening on %s", ", ".join([f"port {self.port}" if self.port else self._settings.listen, *self._also])
        )
        try:
            yield
        finally:
            await servicer.enter_graceful_shutdown()
            await server.stop(STOP_GRACE_SECONDS)


def _listen(server: grpc.aio.Server, address: str, settings: MeshSettings) -> int:
    """The port, which is the system's choice where the address says 0; 0 for a socket, which needs no TLS.

    Raises RuntimeError when the port is taken, FailedPrecondition for a socket that others could take.
    """
    if address.startswith(addresses.PREFIX):
        addresses.check_listen(address)
        server.add_insecure_port(address)
        return 0
    if settings.tls_certificate_file is None or settings.tls_key_file is None:
        return server.add_insecure_port(address)
    pair = (settings.tls_key_file.read_bytes(), settings.tls_certificate_file.read_bytes())
    return server.add_secure_port(address, grpc.ssl_server_credentials([pair]))


async def _beat(ready_file: Path) -> None:
    """Touch the file for ever: a supervisor sees by it that this process, which may have no port, does not hang."""
    while True:
        await asyncio.sleep(BEAT_SECONDS)
        with contextlib.suppress(OSError):
            os.utime(ready_file)


async def _cancelled(task: asyncio.Task[Any]) -> None:
    """End a task. Once may not do: wait_for of Python 3.11, which nats-py uses, can swallow a cancellation."""
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=1)
