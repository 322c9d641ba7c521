"""Following a job until it ends: its streams merged into one progress, shown live or line by line."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any

import typer

from services.cli import exit_codes, output
from services.cli.jobkit import progress, views
from services.cli.jobkit.kind import JobKind
from services.cli.jobkit.progress import Progress
from services.cli.session import options_of, run
from services.client import references
from services.mesh.errors import PlatformError

if TYPE_CHECKING:
    from services.client import AsyncClient
    from services.client._async.jobs import AsyncJobs

_POLL_SECONDS = 2.0
# A pipe gets a line so often at most.
_LINE_SECONDS = 15.0
# How long the last points may take after the job has ended.
_DRAIN_SECONDS = 10.0
Say = Callable[[str], None]


def watch_until_end(context: typer.Context, kind: JobKind, name: str, output_format: str) -> None:
    """Follow a job, then show it. Raises typer.Exit with 1 where it failed, 130 on Ctrl-C."""
    output.hint(f"watching {references.short(name)}; Ctrl-C stops the watching, not the job")
    try:
        job = run(context, lambda client: follow(client, kind, name))
    except KeyboardInterrupt:
        job_command = f"{base_command(context)} {kind.command}"
        output.say(f"the job goes on; the same is shown again by: {job_command} watch {references.short(name)}")
        output.hint(f"end it with: {job_command} cancel {references.short(name)}")
        raise typer.Exit(exit_codes.INTERRUPTED) from None
    if output_format != "table":
        output.show_one(job, (), output_format)
    show_end(kind, job)
    if views.state(job) != "SUCCEEDED":
        raise typer.Exit(exit_codes.FAILED)


def base_command(context: typer.Context) -> str:
    """`rlhf` with the options before the command that say where the job is."""
    options = options_of(context)
    given = {"--project": options.project if options.project != "default" else "", "--server": options.server}
    files = {"--token-file": options.token_file, "--certificates": options.certificates}
    parts = [f"{flag} {shlex.quote(str(value))}" for flag, value in (given | files).items() if value]
    return " ".join(["rlhf", *parts])


def show_end(kind: JobKind, job: Any, next_steps: bool = True) -> None:
    """How it ended, why, and what to do next."""
    from rich.text import Text

    from services.cli import display

    name, state = references.short(job.name), views.state(job)
    style = "bold green" if state == "SUCCEEDED" else "bold red"
    took = display.took(job.start_time, job.end_time)
    output.say(Text.assemble((state.lower(), style), f"  {name}, {views.steps(job)} steps in {took}"))
    if job.error.message:  # and, where one is known, what to do
        output.say(display.clean(job.error.message))
    if state == "SUCCEEDED" and next_steps and kind.next_step:
        output.hint(kind.next_step.format(name=name))
    elif state == "FAILED":
        output.hint(f"what it printed: rlhf {kind.command} logs {name} --tail 50")


async def follow(client: AsyncClient, kind: JobKind, name: str) -> Any:
    """Show a job's progress until it has ended; the job as it ended."""
    jobs = kind.jobs(client)
    state = await kind.progress(client, await jobs.get(name))
    async with _shown(state) as say:
        states = asyncio.create_task(_watch_events(jobs, name, state, say))
        points = asyncio.create_task(_watch_points(jobs, name, state, kind.pace))
        tasks = [states, points, asyncio.create_task(_poll(client, jobs, name, state, say))]
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
        await _refresh(client, jobs, name, state, say)
    return state.job


async def _watch_events(jobs: AsyncJobs[Any, Any], name: str, state: Progress, say: Say) -> None:
    """Until the job has ended."""
    async for event in jobs.events(name, after_sequence=state.job.sequence):
        _say_all(say, state.take_event(event))


async def _watch_points(jobs: AsyncJobs[Any, Any], name: str, state: Progress, pace: Sequence[str]) -> None:
    async for point in jobs.metrics(name, [*{*pace, *(one.metric for one in state.headline)}]):
        state.take_points([point])


async def _poll(client: AsyncClient, jobs: AsyncJobs[Any, Any], name: str, state: Progress, say: Say) -> None:
    """Phase and step, which no stream carries; until the job has ended."""
    while not views.ended(state.job):
        with contextlib.suppress(PlatformError):  # the streams tell of a lost connection, and give up when it is time
            await _refresh(client, jobs, name, state, say)
        await asyncio.sleep(_POLL_SECONDS)


async def _refresh(client: AsyncClient, jobs: AsyncJobs[Any, Any], name: str, state: Progress, say: Say) -> None:
    job, said = await jobs.get(name), await state.refresh(client)
    _say_all(say, state.take_job(job))
    _say_all(say, said)


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
