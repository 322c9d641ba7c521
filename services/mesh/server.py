"""One process of the mesh: routines that start in order and stop in reverse, with or without a gRPC server on top."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from services.mesh import identity
from services.mesh.interceptors import Errors, Identity
from services.mesh.settings import MeshSettings

log = logging.getLogger(__name__)

STOP_GRACE_SECONDS = 5.0
_OPTIONS: Sequence[tuple[str, Any]] = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", 4 * 1024 * 1024),
    ("grpc.max_concurrent_streams", 1000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
)


class Process:
    """Starts what is added to it in order, runs until told to stop or a routine fails, stops in reverse.

    `start` and `stop` are for tests and for `run`, which adds signals and the ready file.
    """

    def __init__(self, name: str, ready_file: Path | None = None) -> None:
        self.name = name
        self._ready_file = ready_file
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
        """A coroutine that runs as long as the process; when it fails, the process ends with its error."""

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
        log.info("started", extra={"process": self.name})

    async def stop(self) -> None:
        await self._stack.aclose()
        log.info("stopped", extra={"process": self.name})

    async def run(self) -> None:
        """Until SIGTERM, SIGINT or the failure of a routine, which is raised."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        await self.start()
        try:
            await self._stopping.wait()
        finally:
            await self.stop()
        if self._failure is not None:
            raise self._failure

    def _routine_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("routine %s failed", task.get_name(), exc_info=error)
            self._failure = error
            self._stopping.set()


class Server(Process):
    """A Process with a gRPC server: health, reflection, identity and errors on every method.

    `port` is the one it listens on, known after `start`.
    """

    def __init__(self, name: str, settings: MeshSettings) -> None:
        super().__init__(name, settings.ready_file)
        self._settings = settings
        token = identity.read_token(settings.token_file)
        self._grpc = grpc.aio.server(interceptors=[Errors(), Identity(token)], options=_OPTIONS)
        self._health = health.aio.HealthServicer()  # pyright: ignore[reportAttributeAccessIssue]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        self._services: list[str] = []
        self.port = 0

    def serve(self, service: str, register: Callable[[grpc.aio.Server], None]) -> None:
        """Add the servicer of `service`, a full proto name, by its generated `add_…_to_server`."""
        register(self._grpc)
        self._services.append(service)

    async def start(self) -> None:
        self.add(_Serving(self))
        await super().start()


class _Serving:
    """The last thing to start and the first to stop: the port opens once everything behind it is there."""

    def __init__(self, server: Server) -> None:
        self._server = server

    async def __aenter__(self) -> None:
        server, grpc_server = self._server, self._server._grpc
        reflection.enable_server_reflection(
            (*server._services, health.SERVICE_NAME, reflection.SERVICE_NAME), grpc_server
        )
        credentials = _credentials(server._settings)
        listen = server._settings.listen
        server.port = (
            grpc_server.add_insecure_port(listen)
            if credentials is None
            else grpc_server.add_secure_port(listen, credentials)
        )
        await grpc_server.start()
        for service in ("", *server._services):
            await server._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        log.info("listening on port %d", server.port)

    async def __aexit__(self, *_: object) -> None:
        await self._server._health.enter_graceful_shutdown()
        await self._server._grpc.stop(STOP_GRACE_SECONDS)


def _credentials(settings: MeshSettings) -> grpc.ServerCredentials | None:
    if settings.tls_certificate_file is None or settings.tls_key_file is None:
        return None
    pair = (settings.tls_key_file.read_bytes(), settings.tls_certificate_file.read_bytes())
    return grpc.ssl_server_credentials([pair])


async def _cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError, Exception):
        await task
