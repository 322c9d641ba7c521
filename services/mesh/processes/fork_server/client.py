"""Asking a fork server for a process. Imports the standard library only: the launcher of Ray's workers waits for it."""

from __future__ import annotations

import array
import contextlib
import json
import os
import select
import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

# Where a process is told of the server: what it starts in turn may be forked too.
VARIABLE = "RLHF_FORK_SERVER"
# The server may be at its imports, which take half a minute where the disk is slow.
PATIENCE_SECONDS = 180.0
MAX_REQUEST_BYTES = 16 * 1024**2
MAX_FILES = 16
_LENGTH = struct.Struct("<I")


class ForkServerUnavailable(OSError):
    """Nobody listens, or the server has gone before it answered."""


@dataclass(frozen=True)
class Request:
    """`arguments` as after `python`: `-m MODULE …` or `FILE …`. `environment` is the whole of it. `detached` makes the
    process no descendant of the server."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)
    folder: str
    detached: bool = False


class Forked:
    """A process that a fork server has made. It is not our child, so its exit status is lost."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._handle: int | None = None
        with contextlib.suppress(ProcessLookupError):
            # Stays the name of this process, while the pid may be given to another.
            self._handle = os.pidfd_open(pid)

    def wait(self, seconds: float | None = None) -> bool:
        """Until it has ended, or for so long; whether it has."""
        if self._handle is not None:
            poll = select.poll()
            poll.register(self._handle, select.POLLIN)
            if not poll.poll(None if seconds is None else seconds * 1000):
                return False
            os.close(self._handle)
            self._handle = None
        return True


def fork(server: Path | str, request: Request, files: Sequence[int]) -> int:
    """The pid of a new process, the leader of a session of its own. Of `files` the first three become its descriptors
    0, 1 and 2, the others it keeps open. Raises ForkServerUnavailable, or OSError where the server could not fork."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(PATIENCE_SECONDS)
            connection.connect(str(server))
            send(connection, request, files)
            answer = connection.recv(4096).decode()
    except OSError as error:
        raise ForkServerUnavailable(f"fork server {server}: {error}") from None
    word, _, rest = answer.partition(" ")
    if not word:
        raise ForkServerUnavailable(f"fork server {server}: it has gone")
    if word != "ok":
        raise OSError(f"fork server {server}: {rest}")
    return int(rest)


def send(connection: socket.socket, request: Request, files: Sequence[int]) -> None:
    body = json.dumps(asdict(request)).encode()
    connection.sendmsg([_LENGTH.pack(len(body))], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))])
    connection.sendall(body)


def receive(connection: socket.socket) -> tuple[Request, list[int]]:
    """A request and its files, which the caller closes. Raises OSError, ValueError, TypeError or KeyError, and keeps
    no file then."""
    head, files, _, _ = socket.recv_fds(connection, _LENGTH.size, MAX_FILES)
    try:
        if len(head) != _LENGTH.size or len(files) < 3:
            raise ValueError(f"{len(head)} bytes and {len(files)} files")
        (length,) = _LENGTH.unpack(head)
        if length > MAX_REQUEST_BYTES:
            raise ValueError(f"a request of {length} bytes")
        body = b""
        while len(body) < length:
            part = connection.recv(min(length - len(body), 1 << 20))
            if not part:
                raise ValueError("half a request")
            body += part
        values = json.loads(body)
        arguments, environment = tuple(map(str, values["arguments"])), dict(values["environment"])
        return Request(arguments, environment, str(values["folder"]), bool(values["detached"])), files
    except BaseException:
        for each in files:
            os.close(each)
        raise
