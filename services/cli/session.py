"""A client of the mesh for the length of a command."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from services.cli import output
from services.mesh.errors import InvalidArgument, NotFound, Unavailable
from services.mesh.settings import Environment, default_home

if TYPE_CHECKING:
    from services.client import AsyncClient

T = TypeVar("T")


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


def options_of(context: typer.Context) -> Options:
    """The options of the command line, also while a shell asks for completions and no callback has run."""
    root = context.find_root()
    if isinstance(root.obj, Options):
        return root.obj
    given = {key: value for key, value in root.params.items() if key in Options.__dataclass_fields__ and value}
    return Options.read(**given)


def run(context: typer.Context, command: Callable[[AsyncClient], Coroutine[Any, Any, T]]) -> T:
    """Run `command` with a client. Raises what the mesh answered."""
    return asyncio.run(with_client(options_of(context), command))


async def with_client(options: Options, command: Callable[[AsyncClient], Coroutine[Any, Any, T]]) -> T:
    """Raises InvalidArgument on `--project`, Unavailable where no mesh runs in this home and no server is named, and
    what `command` does: a name of nothing with those near it.
    """
    from services.client import AsyncClient

    async with AsyncClient(
        options.server,
        project=options.project,
        token_file=options.token_file,
        certificates=options.certificates,
        home=options.home,
        on_lost=output.hint,
    ) as client:
        try:
            return await command(client)
        except (NotFound, InvalidArgument) as error:
            from services.cli import near_names

            raise await near_names.added(client, error) from None
        except Unavailable as error:
            if error.reason != "UNAVAILABLE":
                raise
            where = client.endpoint.address
            raise Unavailable(
                "MESH_NOT_ANSWERING", f"nothing answers at {where}: see `rlhf status`, start with `rlhf up`"
            ) from None


async def collect(items: AsyncIterator[T]) -> list[T]:
    return [item async for item in items]
