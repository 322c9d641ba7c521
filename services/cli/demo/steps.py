"""Steps that both demonstrations take, each said to the person who watches."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from services.cli import exit_codes, output, uploading
from services.cli.commands import datasets, models, train
from services.cli.jobkit import views, watching
from services.cli.training_jobs import TRAINING_JOBS

if TYPE_CHECKING:
    from services.client import AsyncClient


@dataclass(frozen=True)
class Trained:
    """A job that has succeeded."""

    name: str
    steps: int


def title(text: str) -> None:
    output.say("")
    output.say(text, style="bold")


async def upload(client: AsyncClient, name: str, row_format: str, file: Path) -> None:
    """Raises typer.Exit where the file was not taken."""
    from services.cli import dataset_views

    dataset, _ = await datasets.ensure(client, f"{client.project}/datasets/{name}", row_format, {})
    done = await uploading.upload(client, dataset.name, file)
    if done.state != done.STATE_SUCCEEDED:
        dataset_views.show_upload(done, "table")
        raise typer.Exit(exit_codes.FAILED)
    output.hint(f"uploaded {name}: {done.report.row_count} rows of format {row_format}")


async def make_model(client: AsyncClient, name: str, source: Any) -> None:
    """Import a model and wait for it. Raises typer.Exit where that fails."""
    made = await models.importing(client, name, source, {}, wait=True)
    if models.failed(made):
        output.say(made.error.message)
        raise typer.Exit(exit_codes.FAILED)
    output.say(f"{name}: a {made.architecture} of {made.parameter_count:,} weights")


async def train_on(
    client: AsyncClient, name: str, algorithm: str, model: str, data: str, held_out: str, params: dict[str, Any]
) -> Trained:
    """Create a job, show it until it ends. Ctrl-C cancels it. Raises typer.Exit where it does not succeed."""
    title(f"{algorithm.upper()}: {params['steps']} steps")
    job = await client.training_jobs.submit(
        await train.describe(client, algorithm, model, data, held_out, params), name
    )
    try:
        job = await watching.follow(client, TRAINING_JOBS, job.name)
    except asyncio.CancelledError:
        output.say("interrupted; the job is cancelled")
        await client.training_jobs.cancel(job.name)
        raise
    watching.show_end(TRAINING_JOBS, job, next_steps=False)
    if views.state(job) != "SUCCEEDED":
        raise typer.Exit(exit_codes.FAILED)
    return Trained(job.name, job.step_count)
