"""Names from the mesh for shell completion: a second's patience, and silence when the mesh is not up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import typer

from services.cli import session
from services.client import references
from services.mesh.errors import PlatformError

if TYPE_CHECKING:
    from services.cli.jobkit.kind import JobKind
    from services.client import AsyncClient

_PATIENCE_SECONDS = 1.0
_MOST = 200


def models(context: typer.Context, incomplete: str) -> list[str]:
    return _complete(context, incomplete, lambda client: client.models.list(limit=_MOST))


def datasets(context: typer.Context, incomplete: str) -> list[str]:
    return _complete(context, incomplete, lambda client: client.datasets.list(limit=_MOST))


def jobs(context: typer.Context, incomplete: str) -> list[str]:
    return _complete(context, incomplete, lambda client: client.training_jobs.list(limit=_MOST))


def jobs_of(kind: JobKind) -> Callable[[typer.Context, str], list[str]]:
    """Names of the jobs of one kind."""

    def complete(context: typer.Context, incomplete: str) -> list[str]:
        return _complete(context, incomplete, lambda client: kind.jobs(client).list(limit=_MOST))

    return complete


def job_argument(kind: JobKind) -> Any:
    """The argument JOB of a command."""
    return typer.Argument(metavar="JOB", help=f"Such as `{kind.example}`.", autocompletion=jobs_of(kind))


def _complete(
    context: typer.Context, incomplete: str, listed: Callable[[AsyncClient], AsyncIterator[Any]]
) -> list[str]:
    async def command(client: AsyncClient) -> list[str]:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            return [found.name async for found in listed(client)]

    try:
        names = asyncio.run(session.with_client(session.options_of(context), command))
    except (PlatformError, TimeoutError, OSError):
        return []
    return [short for name in names if (short := references.short(name)).startswith(incomplete)]
