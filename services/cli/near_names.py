"""A name of nothing, told with the names that are near it."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from services.client import references
from services.mesh import names
from services.mesh.errors import InvalidArgument, NotFound, PlatformError, Violation

if TYPE_CHECKING:
    from services.client import AsyncClient

# What the mesh and the client say of it.
_NOTHING = re.compile(r"there is no (?:(projects/[^\s;,]+)|model and no job '([^']+)')$")
_MOST_LISTED = 500
_MOST_SHOWN = 3
_BEGIN = {"models": "rlhf model import", "datasets": "rlhf dataset upload", "trainingJobs": "rlhf train"}


async def added(client: AsyncClient, error: PlatformError) -> PlatformError:
    """`error`, its message or its violations ending with names that may have been meant."""
    if isinstance(error, NotFound):
        return NotFound(error.reason, error.message + await _hint(client, error.message), **error.metadata)
    if isinstance(error, InvalidArgument):
        violations = [
            Violation(each.field, each.description + await _hint(client, each.description)) for each in error.violations
        ]
        return InvalidArgument(violations, error.reason)
    return error


async def _hint(client: AsyncClient, message: str) -> str:
    found = _NOTHING.search(message)
    if found is None:
        return ""
    with contextlib.suppress(PlatformError):
        wanted, known, collection = await _known(client, found[1] or "", found[2] or "")
        near = difflib.get_close_matches(wanted, known, n=_MOST_SHOWN, cutoff=0.6)
        if near:
            return f"; did you mean {' or '.join(near)}?"
        if known:
            return f"; there {'is' if len(known) == 1 else 'are'} {_listed(known)}"
        return f"; there is none yet, `{_BEGIN[collection]}` makes one" if collection else ""
    return ""


def _listed(known: list[str]) -> str:
    left = len(known) - _MOST_SHOWN
    return ", ".join(known[:_MOST_SHOWN]) + (f" and {left} more" if left > 0 else "")


async def _known(client: AsyncClient, name: str, text: str) -> tuple[str, list[str], str]:
    """The name as a person writes it, those that there are, and the collection they are of."""
    if not name:
        return text, [*await _ids(client.models.list(limit=_MOST_LISTED)), *await _jobs(client)], "models"
    if names.match(names.MODEL, name):
        return references.short(name), await _ids(client.models.list(limit=_MOST_LISTED)), "models"
    if names.match(names.DATASET, name) or names.match(names.DATASET_VERSION, name):
        dataset, _, version = name.partition("/versions/")
        datasets = await _ids(client.datasets.list(limit=_MOST_LISTED))
        if version and references.short(dataset) in datasets:
            return references.short(name), await _ids(client.dataset_versions.list(dataset, limit=_MOST_LISTED)), ""
        return references.short(dataset), datasets, "datasets"
    if names.match(names.TRAINING_CHECKPOINT, name):
        job = name.partition("/checkpoints/")[0]
        if references.short(job) in (jobs := await _jobs(client)):
            return references.short(name), await _ids(client.checkpoints.list(job)), ""
        return references.short(job), jobs, "trainingJobs"
    return references.short(name), await _jobs(client), "trainingJobs"


async def _jobs(client: AsyncClient) -> list[str]:
    return await _ids(client.training_jobs.list(limit=_MOST_LISTED))


async def _ids(resources: AsyncIterator[Any]) -> list[str]:
    return [references.short(resource.name) async for resource in resources]
