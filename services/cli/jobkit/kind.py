"""A kind of job, as the command line knows it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from services.cli.output import Column
from services.client import references

if TYPE_CHECKING:
    from services.cli.jobkit.progress import Progress
    from services.client import AsyncClient
    from services.client._async.jobs import AsyncJobs


@dataclass(frozen=True)
class JobKind:
    """`command` is the word after `rlhf`, `noun` what a person calls such jobs, `example` a name of one."""

    command: str
    noun: str
    example: str
    jobs: Callable[[AsyncClient], AsyncJobs[Any, Any]]
    columns: Sequence[Column]
    facts: Callable[[Any], list[tuple[str, str]]]
    progress: Callable[[AsyncClient, Any], Awaitable[Progress]]
    # The command that makes one.
    create: str
    # What goes with a job that is deleted.
    made: str = "metrics and logs"
    # Said of one that has succeeded; `{name}` stands for it.
    next_step: str = ""
    # Series that tell how fast it goes, whatever its headline.
    pace: Sequence[str] = ()

    def name(self, client: AsyncClient, text: str) -> str:
        """The full name of what a person typed. Raises InvalidArgument on `JOB`."""
        return references.resource(client.project, self.jobs(client).kind.pattern, text, "JOB")
