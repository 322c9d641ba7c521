"""How many tokens rows have in a model's own tokenizer, asked of a process of its own before a job is made.

The tokenizer and its chat template are a stranger's: the process (verifier/token_lengths.py) has limits on CPU time
and memory and is killed when it takes too long. What it found is kept by contents, so asking again is free.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import tempfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from services.mesh.errors import PlatformError
from services.mesh.processes.fork_server import client as fork_client
from services.trainer.entities import BaseModel, DatasetVersion

# What is rendered of a row: a conversation, a prompt with the opening of its answer, the longer side of a pair, or what
# a validation row asks, with the opening of its answer.
Kind = Literal["messages", "prompt", "preference", "question"]

# Every name under which a tokenizer or its template lies in a model folder.
TOKENIZER_FILES = (
    *("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "chat_template.json", "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model"),
    *("spiece.model", "sentencepiece.bpe.model", "tekken.json"),
)
# All rows of a version of this size are read, of a larger one windows that are spread over it evenly.
WHOLE_BYTES = 32 * 2**20
_WINDOWS = 32
# Of tokenizing; then what was not reached counts as not read.
TOKENIZING_SECONDS = 3.0
# Of everything, imports included; the process's own limit on CPU time is below it.
TIMEOUT_SECONDS = 20.0
# Each is a process.
_AT_A_TIME = 2
# Those that are still being measured among them: who asks for one more is turned away.
_KEPT_ANSWERS = 8


class MeasuringError(Exception):
    """The lengths could not be had; the text says why."""


class Request(msgspec.Struct, frozen=True):
    """What the process is asked: `tokenizer` is a folder, `rows` a file of canonical rows, of which the first `first`
    count (0: all)."""

    tokenizer: str
    rows: str
    kind: Kind
    first: int = 0
    seconds: float = TOKENIZING_SECONDS


class Lengths(msgspec.Struct, frozen=True, tag=True):
    """Tokens of each row that was read and rendered, in no order. `refused` counts those that the chat template does
    not render, `refusal` says why of one. `silenced` counts those with `reasoning_content` where the template writes no
    thoughts. `answers` are those of some of the rows, cut. `whole`: every row was read.
    """

    tokens: list[int]
    refused: int = 0
    refusal: str = ""
    silenced: int = 0
    answers: list[str] = []
    whole: bool = True

    @property
    def read(self) -> int:
        return len(self.tokens) + self.refused


class Refusal(msgspec.Struct, frozen=True, tag=True):
    """What the process answers where it has no lengths."""

    error: str


class Rows(Protocol):
    """Where rows come from: the dataset service."""

    async def part(self, name: str, offset: int, size: int) -> bytes: ...


class Files(Protocol):
    """Where files of models come from."""

    async def files(self, model: BaseModel, paths: tuple[str, ...]) -> dict[str, bytes]: ...


@dataclass(frozen=True)
class Asking:
    """The process: `python` and the whole of its `environment`; `fork_server` forks it where there is one."""

    python: str
    environment: Mapping[str, str]
    fork_server: Path | None = None
    timeout_seconds: float = TIMEOUT_SECONDS


class TokenLengths:
    """Use case. Concurrent questions about the same contents share one answer."""

    def __init__(self, asking: Asking, rows: Rows, folder: Path) -> None:
        self._asking = asking
        self._rows = rows
        self._folder = folder
        self._places = asyncio.Semaphore(_AT_A_TIME)
        self._answers: OrderedDict[tuple[object, ...], asyncio.Task[Lengths]] = OrderedDict()

    async def measure(
        self, files: Files, base: BaseModel, version: DatasetVersion, kind: Kind, first: int, patience_seconds: float
    ) -> Lengths:
        """Raises MeasuringError, at once where too many are measured, and after `patience_seconds`: the measuring goes
        on then, for who asks next."""
        key = (tuple(layer.manifest_sha256 for layer in base.layers), version.name, version.sha256, kind, first)
        task = self._answers.get(key)
        if task is None:
            self._make_room()
            task = self._answers[key] = asyncio.ensure_future(self._measure(files, base, version, kind, first))
            task.add_done_callback(lambda done: self._forget_failed(key, done))
        self._answers.move_to_end(key)
        try:
            async with asyncio.timeout(patience_seconds):
                return await asyncio.shield(task)
        except TimeoutError:
            message = f"not done after {patience_seconds:.0f} s; it goes on, and a check a little later has it"
            raise MeasuringError(message) from None
        except (PlatformError, OSError) as error:
            raise MeasuringError(str(error)) from error

    def _make_room(self) -> None:
        """Forget what was asked for longest ago. Raises MeasuringError where all of it is still being measured."""
        if len(self._answers) < _KEPT_ANSWERS:
            return
        oldest = next((key for key, task in self._answers.items() if task.done()), None)
        if oldest is None:
            raise MeasuringError("the rows of many other jobs are being looked at; a check a little later has it")
        del self._answers[oldest]

    def _forget_failed(self, key: tuple[object, ...], task: asyncio.Task[Lengths]) -> None:
        if task.cancelled() or task.exception() is not None:
            self._answers.pop(key, None)

    async def _measure(self, files: Files, base: BaseModel, version: DatasetVersion, kind: Kind, first: int) -> Lengths:
        async with self._places:
            await asyncio.to_thread(self._folder.mkdir, parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix="lengths-", dir=self._folder) as scratch:
                tokenizer, rows = Path(scratch) / "tokenizer", Path(scratch) / "rows.jsonl"
                found = await files.files(base, TOKENIZER_FILES)
                await asyncio.to_thread(_write, tokenizer, found)
                whole = await self._fetch(version, rows, only_first=first > 0)
                request = Request(str(tokenizer), str(rows), kind, first)
                lengths = await asyncio.to_thread(_ask, self._asking, Path(scratch), request)
        return lengths if whole else msgspec.structs.replace(lengths, whole=False)

    async def _fetch(self, version: DatasetVersion, target: Path, *, only_first: bool) -> bool:
        """Write rows to `target`; whether they are all that are asked for."""
        size = version.size_bytes
        if size <= WHOLE_BYTES or only_first:
            content = await self._rows.part(version.name, 0, min(size, WHOLE_BYTES))
            await asyncio.to_thread(target.write_bytes, content if size <= WHOLE_BYTES else _whole_lines(content))
            return True
        width = WHOLE_BYTES // _WINDOWS
        with target.open("wb") as file:
            for window in range(_WINDOWS):
                offset = window * (size - width) // (_WINDOWS - 1)
                content = await self._rows.part(version.name, offset, width)
                # The first window begins with a row, the others most often within one.
                file.write(_whole_lines(content if offset == 0 else content.partition(b"\n")[2]))
        return False


def _whole_lines(content: bytes) -> bytes:
    return content[: content.rfind(b"\n") + 1]


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)


def _ask(asking: Asking, folder: Path, request: Request) -> Lengths:
    """Raises MeasuringError with what the process said, or that it said nothing."""
    question, answer = folder / "request.json", folder / "answer.json"
    question.write_bytes(msgspec.json.encode(request))
    with question.open("rb") as stdin, answer.open("wb") as stdout:
        if not _run(asking, str(folder), stdin.fileno(), stdout.fileno()):
            raise MeasuringError(f"tokenizing the rows took longer than {asking.timeout_seconds:.0f} s and was stopped")
    try:
        said = msgspec.json.decode(answer.read_bytes(), type=Lengths | Refusal)
    except msgspec.DecodeError:
        message = "the process that tokenizes rows died, most often for want of memory or of CPU time"
        raise MeasuringError(message) from None
    if isinstance(said, Refusal):
        raise MeasuringError(said.error)
    return said


def _run(asking: Asking, folder: str, stdin: int, stdout: int) -> bool:
    """Until it has ended; False where it had to be killed."""
    arguments = ("-m", "services.trainer.verifier", "tokens")
    if asking.fork_server is not None:
        request = fork_client.Request(arguments, asking.environment, folder)
        with contextlib.suppress(OSError), Path(os.devnull).open("wb") as nothing:
            process = fork_client.Forked(
                fork_client.fork(asking.fork_server, request, [stdin, stdout, nothing.fileno()])
            )
            return process.wait(asking.timeout_seconds) or _killed(process.pid)
    spawned = subprocess.Popen(  # noqa: S603 - a fixed command
        [asking.python, *arguments],
        stdin=stdin,
        stdout=stdout,
        stderr=subprocess.DEVNULL,
        env=dict(asking.environment),
        start_new_session=True,
    )
    try:
        spawned.wait(asking.timeout_seconds)
    except subprocess.TimeoutExpired:
        _killed(spawned.pid)
        spawned.wait()
        return False
    return True


def _killed(pid: int) -> bool:
    """Kill the session's processes; always False."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    return False
