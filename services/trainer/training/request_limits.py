"""What a request makes the service check is bounded before anything is checked: the number of its rewards, and the
time for all of its schemas together, which another process takes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import msgspec

from services.mesh.errors import InvalidArgument, Violation
from services.scoring.known_schemas import known
from services.trainer.entities import NewTrainingJob

MOST_REWARDS = 64
# Of processor time for all schemas of a request; by the clock it may take so many times as long.
CPU_SECONDS = 5
_CLOCK = 6
_TOO_LONG = "takes too long to check: the schemas of a request have {:g} s of a processor together"
P = ParamSpec("P")
R = TypeVar("R")
# Each is a process.
_places = asyncio.Semaphore(2)


@asynccontextmanager
async def vetted(params: Mapping[str, Any], field: str = "params") -> AsyncIterator[None]:
    """A block in which the schemas of `params` are known, and not checked again. Raises InvalidArgument where there are
    too many rewards; what is wrong with a schema is told where it is read."""
    count = sum(len(value) for key, value in _entries(params) if key == "components" and isinstance(value, list))
    if count > MOST_REWARDS:
        message = f"holds {count} rewards that are components of others; {MOST_REWARDS} are the most"
        raise InvalidArgument([Violation(field, message)])
    # Each once, in the order in which they stand.
    schemas = list({json.dumps(value): value for key, value in _entries(params) if key == "schema"}.values())
    with known(await _faults(schemas) if schemas else []):
        yield


def of_job(
    check: Callable[Concatenate[NewTrainingJob, P], Awaitable[R]],
) -> Callable[Concatenate[NewTrainingJob, P], Awaitable[R]]:
    """A check of a new job within such a block."""

    @wraps(check)
    async def checked(new: NewTrainingJob, *arguments: P.args, **named: P.kwargs) -> R:
        async with vetted(new.params, "training_job.params"):
            return await check(new, *arguments, **named)

    return checked


def _entries(params: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every key with its value, however deep it stands; what is in a schema is the schema's."""
    left: deque[Any] = deque([params])
    while left:
        value = left.popleft()
        if isinstance(value, Mapping):
            yield from value.items()
            left.extend(inner for key, inner in value.items() if key != "schema")
        elif isinstance(value, list):
            left.extend(value)


async def _faults(schemas: list[Any]) -> list[tuple[Any, str]]:
    """Each schema with what is wrong with it."""
    async with _places:
        output = await _check(msgspec.json.encode(schemas))
    told = [json.loads(line) for line in output.splitlines(keepends=True) if line.endswith(b"\n")]
    return list(zip(schemas, [*told, *[_TOO_LONG.format(CPU_SECONDS)] * (len(schemas) - len(told))], strict=True))


async def _check(schemas: bytes) -> bytes:
    # By Popen, which calls vfork: asyncio's loops fork, and gRPC, which many threads of this process run, does not
    # survive that in the child.
    process = subprocess.Popen(  # noqa: ASYNC220, S603 - returns at once; a fixed command
        [sys.executable, "-P", "-m", "services.scoring.schema_process", str(CPU_SECONDS)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={"PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,
    )
    kill = asyncio.get_running_loop().call_later(CPU_SECONDS * _CLOCK, _end, process)
    try:
        output, _ = await asyncio.to_thread(process.communicate, schemas)
    finally:
        kill.cancel()
        _end(process)
    return output


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
