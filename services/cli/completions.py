"""Names from the mesh for shell completion: a second's patience, and silence when the mesh is not up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import typer

from services.cli import references, session
from services.cli.session import Session
from services.mesh.errors import PlatformError

_PATIENCE_SECONDS = 1.0
_MOST = 200


def models(context: typer.Context, incomplete: str) -> list[str]:
    return _complete(context, incomplete, _models)


def datasets(context: typer.Context, incomplete: str) -> list[str]:
    return _complete(context, incomplete, _datasets)


def jobs(context: typer.Context, incomplete: str) -> list[str]:
    return _complete(context, incomplete, _jobs)


def _complete(context: typer.Context, incomplete: str, fetch: Callable[[Session], Awaitable[list[str]]]) -> list[str]:
    async def command(opened: Session) -> list[str]:
        return await asyncio.wait_for(fetch(opened), _PATIENCE_SECONDS)

    try:
        names = asyncio.run(session.with_session(session.options_of(context), command))
    except (PlatformError, TimeoutError, OSError):
        return []
    return [short for name in names if (short := references.short(name)).startswith(incomplete)]


async def _models(opened: Session) -> list[str]:
    from rlhf.trainer.v1.trainer_service_pb2 import ListModelsRequest

    from services.mesh.client import call

    answer = await call(opened.trainer.ListModels(ListModelsRequest(parent=opened.project, page_size=_MOST)))
    return [model.name for model in answer.models]


async def _datasets(opened: Session) -> list[str]:
    from rlhf.dataset.v1.dataset_service_pb2 import ListDatasetsRequest

    from services.mesh.client import call

    answer = await call(opened.datasets.ListDatasets(ListDatasetsRequest(parent=opened.project, page_size=_MOST)))
    return [dataset.name for dataset in answer.datasets]


async def _jobs(opened: Session) -> list[str]:
    from rlhf.trainer.v1.trainer_service_pb2 import ListTrainingJobsRequest

    from services.mesh.client import call

    request = ListTrainingJobsRequest(parent=opened.project, page_size=_MOST)
    return [job.name for job in (await call(opened.trainer.ListTrainingJobs(request))).training_jobs]
