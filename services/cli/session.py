"""Where the mesh is, and one connection to it for the length of a command."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from services.cli import references
from services.mesh.errors import PlatformError, Unavailable
from services.mesh.settings import Environment, default_home

if TYPE_CHECKING:
    import grpc.aio

T = TypeVar("T")

MAX_PAGE_SIZE = 1000


@dataclass(frozen=True)
class Options:
    """What every command takes from the options before it and from the environment."""

    project: str = "default"
    # `host:port` of the gateway's gRPC port; empty means the mesh of `home`.
    server: str = ""
    token_file: Path | None = None
    # Of a server that speaks TLS with a private authority.
    certificates: Path | None = None
    home: Path = Path()

    @classmethod
    def read(
        cls,
        project: str = "default",
        server: str = "",
        token_file: Path | None = None,
        certificates: Path | None = None,
    ) -> Options:
        return cls(project, server, token_file, certificates, default_home(Environment()))


@dataclass(frozen=True)
class Endpoint:
    target: str
    token_file: Path


def find(options: Options) -> Endpoint:
    """The gateway. Raises Unavailable where no mesh runs in this home and no server is named."""
    if options.server:
        return Endpoint(options.server, options.token_file or options.home / "token")
    path = options.home / "run" / "endpoints.json"
    try:
        target = json.loads(path.read_text())["grpc"]
    except (OSError, ValueError, KeyError, TypeError):
        raise Unavailable("MESH_NOT_UP", f"the mesh is not up (home {options.home}): run `rlhf up`") from None
    return Endpoint(target, options.token_file or options.home / "token")


class Session:
    """The stubs of the services, and the project at hand."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.project = references.project(options.project)
        self._endpoint: Endpoint | None = None
        self._channels: list[grpc.aio.Channel] = []

    async def connect(self) -> None:
        """Connect, or after a loss connect to where the mesh is now: a mesh that was started again has new ports."""
        from rlhf.dataset.v1.dataset_service_pb2_grpc import DatasetServiceStub
        from rlhf.trainer.v1.trainer_service_pb2_grpc import TrainerServiceStub

        from services.mesh import client, identity

        endpoint = find(self.options)
        if endpoint == self._endpoint:
            return
        token = await asyncio.to_thread(identity.read_token, endpoint.token_file)
        channel = client.connect(endpoint.target, token, self.options.certificates)
        self._channels.append(channel)
        self._endpoint = endpoint
        self.trainer, self.datasets = TrainerServiceStub(channel), DatasetServiceStub(channel)

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()

    async def resume(self, open_stream: Callable[[], Any], lost: Callable[[str], None]) -> AsyncGenerator[Any, None]:
        """The replies of a stream that is opened again, by its cursor, whenever the connection breaks.

        `open_stream` starts the call from the reader's cursor; `lost` is told once for each break. Raises Unavailable
        after RECONNECT_SECONDS without an answer, and every error that is not the connection's at once.
        """
        from services.mesh import client

        retry = Retry(lost)
        while True:
            try:
                async for reply in client.stream(open_stream()):
                    retry.succeeded()
                    yield reply
                return
            except PlatformError as error:
                await retry.failed(error)
            await retry.reconnect(self)


RECONNECT_SECONDS = 120.0
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.3, 5.0


class Retry:
    """Patience with one connection: rising pauses, a word at the first failure, an end after RECONNECT_SECONDS."""

    def __init__(self, lost: Callable[[str], None]) -> None:
        self._lost = lost
        self.succeeded()

    def succeeded(self) -> None:
        self._pause, self._waited = _FIRST_PAUSE_SECONDS, 0.0

    async def failed(self, error: PlatformError) -> None:
        """Wait before the next try. Raises `error` where another try can't help."""
        if not is_connection_lost(error) or self._waited >= RECONNECT_SECONDS:
            raise error
        if not self._waited:
            self._lost("the connection is lost; trying again")
        await asyncio.sleep(self._pause)
        self._waited += self._pause
        self._pause = min(self._pause * 2, _LONGEST_PAUSE_SECONDS)

    async def reconnect(self, session: Session) -> None:
        with contextlib.suppress(PlatformError):  # the mesh may be on its way up: the next call tells
            await session.connect()


def is_connection_lost(error: PlatformError) -> bool:
    """Whether the connection failed, not the call: our servers give a reason, the transport repeats its code."""
    return error.code == "UNAVAILABLE" or error.reason in ("DEADLINE_EXCEEDED", "CANCELLED", "UNKNOWN")


@contextlib.asynccontextmanager
async def opened(options: Options) -> AsyncIterator[Session]:
    session = Session(options)
    try:
        await session.connect()
        yield session
    finally:
        await session.close()


def options_of(context: typer.Context) -> Options:
    """The options of the command line, also while a shell asks for completions and no callback has run."""
    root = context.find_root()
    if isinstance(root.obj, Options):
        return root.obj
    given = {key: value for key, value in root.params.items() if key in Options.__dataclass_fields__ and value}
    return Options.read(**given)


def run(context: typer.Context, command: Callable[[Session], Coroutine[Any, Any, T]]) -> T:
    """Run `command` with a connection. Raises what the mesh answered."""
    return asyncio.run(with_session(options_of(context), command))


async def with_session(options: Options, command: Callable[[Session], Coroutine[Any, Any, T]]) -> T:
    async with opened(options) as session:
        try:
            return await command(session)
        except Unavailable as error:
            if error.reason != "UNAVAILABLE":
                raise
            where = find(options).target
            raise Unavailable(
                "MESH_NOT_ANSWERING", f"nothing answers at {where}: see `rlhf status`, start with `rlhf up`"
            ) from None


async def collect(
    page: Callable[[int, str], Awaitable[Any]], items: Callable[[Any], Sequence[T]], limit: int = 0
) -> list[T]:
    """The items of a paged list, at most `limit` (0 takes all). `page` fetches one page by size and token."""
    found: list[T] = []
    token = ""
    while True:
        left = limit - len(found) if limit else MAX_PAGE_SIZE
        answer = await page(min(left, MAX_PAGE_SIZE), token)
        found.extend(items(answer))
        token = answer.next_page_token
        if not token or (limit and len(found) >= limit):
            return found[:limit] if limit else found
