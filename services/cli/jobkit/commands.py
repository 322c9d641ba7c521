"""Commands of jobs: list, show, watch, cancel, delete."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from services.cli import completions, output
from services.cli.confirming import ForceOption, YesOption, confirm
from services.cli.jobkit import reports
from services.cli.jobkit.kind import JobKind
from services.cli.output import FormatOption
from services.cli.session import collect, run
from services.mesh.errors import InvalidArgument

if TYPE_CHECKING:
    from rlhf.type.v1.job_state_pb2 import JobState


def add(app: typer.Typer, kind: JobKind) -> None:
    """Add the commands that every kind of job has."""
    _add_reading(app, kind)
    _add_ending(app, kind)
    reports.add(app, kind)


def _add_reading(app: typer.Typer, kind: JobKind) -> None:
    rlhf, argument = f"rlhf {kind.command}", completions.job_argument(kind)

    @app.command("list", help=f"Jobs, newest first.\n\nExample: `{rlhf} list --state running --state queued`")
    def list_jobs(
        context: typer.Context,
        state: Annotated[
            list[str] | None, typer.Option(help="Only these, such as `running`; may be given again.")
        ] = None,
        limit: Annotated[int, typer.Option(help="At most so many; 0 shows all.", min=0)] = 50,
        output_format: FormatOption = "table",
    ) -> None:
        states = [_state(text) for text in state or []]
        found = run(context, lambda client: collect(kind.jobs(client).list(states=states, limit=limit)))
        output.show_list(found, kind.columns, output_format, f"no {kind.noun}s; start one with `{kind.create}`")

    @app.command(
        help="A job: state, error and remedy, warnings, attempts, parameters with their defaults.\n\n"
        f"Example: `{rlhf} show {kind.example}`"
    )
    def show(context: typer.Context, job: str = argument, output_format: FormatOption = "table") -> None:
        found = run(context, lambda client: kind.jobs(client).get(kind.name(client, job)))
        output.show_one(found, kind.facts(found), output_format)

    @app.command(
        help="Follow a job until it ends. Exits with 1 when it failed or was cancelled.\n\n"
        "Ctrl-C stops the watching, never the job. A connection that breaks is made again and nothing is missed.\n\n"
        f"Example: `{rlhf} watch {kind.example}`"
    )
    def watch(context: typer.Context, job: str = argument, output_format: FormatOption = "table") -> None:
        from services.cli.jobkit import watching

        found = run(context, lambda client: kind.jobs(client).get(kind.name(client, job)))
        watching.watch_until_end(context, kind, found.name, output_format)


def _add_ending(app: typer.Typer, kind: JobKind) -> None:
    rlhf, argument = f"rlhf {kind.command}", completions.job_argument(kind)

    @app.command(
        help="Stop a job at its next step, or after the grace period by force. What it has made stays.\n\n"
        f"Example: `{rlhf} cancel {kind.example}`"
    )
    def cancel(context: typer.Context, job: str = argument, output_format: FormatOption = "table") -> None:
        found = run(context, lambda client: kind.jobs(client).cancel(kind.name(client, job)))
        output.show_row(found, kind.columns, output_format)

    @app.command(
        help=f"Delete a job that has ended, with its {kind.made}.\n\n"
        "Refused while a job that has not ended, or anything else, uses what it made.\n\n"
        f"Example: `{rlhf} delete {kind.example}`"
    )
    def delete(
        context: typer.Context,
        job: str = argument,
        force: ForceOption = False,
        yes: YesOption = False,
    ) -> None:
        confirm(f"Delete {job} with its {kind.made}?", yes)
        run(context, lambda client: kind.jobs(client).delete(kind.name(client, job), force=force))
        output.say(f"deleted {job}")


def _state(text: str) -> JobState.ValueType:
    """The number of a state by its word. Raises InvalidArgument."""
    from rlhf.type.v1.job_state_pb2 import JobState

    name = f"JOB_STATE_{text.upper()}"
    if name not in (known := list(JobState.keys())[1:]):  # the first is UNSPECIFIED
        words = ", ".join(key.removeprefix("JOB_STATE_").lower() for key in known)
        raise InvalidArgument.of("--state", f"{text!r} is none; one of {words}")
    return JobState.Value(name)
