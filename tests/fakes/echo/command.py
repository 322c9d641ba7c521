"""`rlhf echo`: the commands that every kind of job has."""

from __future__ import annotations

from typing import Any

import typer
from rlhf.echo.v1 import echo_service_pb2 as pb  # pyright: ignore[reportMissingImports]

from services.cli.jobkit import commands, views
from services.cli.jobkit.kind import JobKind
from services.cli.jobkit.progress import Progress
from services.cli.output import Column
from services.client._async.jobs import AsyncJobs, JobMessages


class AsyncEchoJobs(AsyncJobs[Any, Any]):
    kind = JobMessages("EchoJob", "projects/{project}/echoJobs/{echo_job}", pb, pb.EchoJob)


async def progress(client: Any, job: Any) -> Progress:
    return Progress(job)


ECHO_JOBS = JobKind(
    command="echo",
    noun="echo job",
    example="echo-k3x9qa",
    jobs=lambda client: AsyncEchoJobs(client.calls("rlhf.echo.v1.EchoService"), client.project),
    columns=views.columns([Column("TEXT", lambda job: job.text)]),
    facts=lambda job: views.facts(job, [("text", job.text)], [], []),
    progress=progress,
    create="curl",
)
app = typer.Typer()
commands.add(app, ECHO_JOBS)
