"""Following a job until it ends: its streams merged into one progress, shown live or line by line."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import time
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

import typer

from services.cli import exit_codes, headline, job_views, output, progress
from services.cli.progress import Progress
from services.cli.session import collect, options_of, run
from services.client import references
from services.mesh.errors import PlatformError

if TYPE_CHECKING:
    from rlhf.trainer.v1.training_job_pb2 import TrainingJob

    from services.client import AsyncClient

# Of any algorithm, to see how fast it goes.
_PACE = ("time/step_seconds", "train/loss")
_POLL_SECONDS = 2.0
# A pipe gets a line so often at most.
_LINE_SECONDS = 15.0
# How long the last points may take after the job has ended.
_DRAIN_SECONDS = 10.0
Say = Callable[[str], None]


def watch_until_end(context: typer.Context, name: str, output_format: str) -> None:
    """Follow a job, then show it. Raises typer.Exit with 1 where it failed, 130 on Ctrl-C."""
    output.hint(f"watching {references.short(name)}; Ctrl-C stops the watching, not the job")
    try:
        job = run(context, lambda client: follow(client, name))
    except KeyboardInterrupt:
        job_command = f"{base_command(context)} job"
        output.say(f"the job goes on; the same is shown again by: {job_command} watch {references.short(name)}")
        output.hint(f"end it with: {job_command} cancel {references.short(name)}")
        raise typer.Exit(exit_codes.INTERRUPTED) from None
    if output_format != "table":
        output.show_one(job, (), output_format)
    show_end(job)
    if job_views.state(job) != "SUCCEEDED":
        raise typer.Exit(exit_codes.FAILED)


def base_command(context: typer.Context) -> str:
    """`rlhf` with the options before the command that say where the job is."""
    options = options_of(context)
    given = {"--project": options.project if options.project != "default" else "", "--server": options.server}
    files = {"--token-file": options.token_file, "--certificates": options.certificates}
    parts = [f"{flag} {shlex.quote(str(value))}" for flag, value in (given | files).items() if value]
    return " ".join(["rlhf", *parts])


def show_end(job: TrainingJob, next_steps: bool = True) -> None:
    """How it ended, why, and what to do next."""
    from rich.text import Text

    from services.cli import display

    name, state = references.short(job.name), job_views.state(job)
    style = "bold green" if state == "SUCCEEDED" else "bold red"
    took = display.took(job.start_time, job.end_time)
    output.say(Text.assemble((state.lower(), style), f"  {name}, {job_views.steps(job)} steps in {took}"))
    if job.error.message:  # and, where one is known, what to do
        output.say(display.clean(job.error.message))
    if state == "SUCCEEDED" and next_steps:
        output.hint(f"its model: rlhf checkpoint download {name} --to DIRECTORY")
    elif state == "FAILED":
        output.hint(f"what it printed: rlhf job logs {name} --tail 50")


async def follow(client: AsyncClient, name: str) -> TrainingJob:
    """Show a job's progress until it has ended; the job as it ended."""
    job = await client.training_jobs.get(name)
    state = Progress(job, await headline.of_algorithm(client, job.algorithm))
    async with _shown(state) as say:
        states, points = (asyncio.create_task(f(client, name, state, say)) for f in (_watch_events, _watch_points))
        tasks = [states, points, asyncio.create_task(_poll(client, name, state, say))]
        try:
            while not states.done():
                done, _ = await asyncio.wait(
                    [task for task in tasks if not task.done()], return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    task.result()
            await asyncio.wait((points,), timeout=_DRAIN_SECONDS)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await _refresh(client, name, state, say)
    return state.job


async def _watch_events(client: AsyncClient, name: str, state: Progress, say: Say) -> None:
    """Until the job has ended."""
    async for event in client.training_jobs.events(name, after_sequence=state.job.sequence):
        if event.HasField("training_job"):
            _say_all(say, state.take_job(event.training_job))
        elif event.HasField("checkpoint"):
            _say_all(say, state.take_checkpoints([event.checkpoint]))
        elif event.HasField("warning"):
            _say_all(say, state.take_warnings([event.warning]))


async def _watch_points(client: AsyncClient, name: str, state: Progress, say: Say) -> None:
    async for point in client.training_jobs.metrics(name, [*{*_PACE, *(one.metric for one in state.headline)}]):
        state.take_points([point])


async def _poll(client: AsyncClient, name: str, state: Progress, say: Say) -> None:
    """Phase and step, which no stream carries; until the job has ended."""
    while not job_views.ended(state.job):
        with contextlib.suppress(PlatformError):  # the streams tell of a lost connection, and give up when it is time
            await _refresh(client, name, state, say)
        await asyncio.sleep(_POLL_SECONDS)


async def _refresh(client: AsyncClient, name: str, state: Progress, say: Say) -> None:
    found = await collect(client.checkpoints.list(name))
    _say_all(say, state.take_job(await client.training_jobs.get(name)))
    _say_all(say, state.take_checkpoints(found))


def _say_all(say: Say, texts: list[str]) -> None:
    for text in texts:
        say(text)


@contextlib.asynccontextmanager
async def _shown(state: Progress) -> AsyncIterator[Say]:
    """Show `state` while the block runs: a live panel on a terminal, else a line when something has moved."""
    console = output.messages()
    if console.is_terminal:
        from rich.live import Live

        with Live(console=console, refresh_per_second=8, transient=True, get_renderable=lambda: progress.panel(state)):
            yield output.say
        return
    ticker = asyncio.create_task(_print_lines(state))
    try:
        yield output.say
    finally:
        ticker.cancel()
        await asyncio.gather(ticker, return_exceptions=True)
        output.say(progress.line(state))


async def _print_lines(state: Progress) -> None:
    """A line whenever a tenth of the steps or LINE_SECONDS have passed with something new to say."""
    last, last_step, last_time = "", -1, 0.0
    while True:
        text = progress.line(state)
        tenth = max(1, state.total // 10)
        due = state.step >= last_step + tenth or time.monotonic() - last_time >= _LINE_SECONDS
        if text != last and due:
            output.say(text)
            last, last_step, last_time = text, state.step, time.monotonic()
        await asyncio.sleep(0.5)
