"""The server. It starts no thread, as a fork of a process with more than one may deadlock."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import os
import random
import runpy
import signal
import socket
import struct
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

from services.mesh.processes.fork_server.client import Request, receive

_CONNECTION_SECONDS = 10.0
# pid, uid, gid of who connects: SO_PEERCRED of socket(7).
_PEER = struct.Struct("3i")


def main(path: Path, modules: Sequence[str]) -> None:
    """Import `modules`, then serve at `path` until ended. Returns in the children, when what each is for has run."""
    with listen(path) as listener:
        with warnings.catch_warnings():
            # Of what is not installed; who needs it will say so.
            warnings.simplefilter("ignore")
            for module in modules:
                importlib.import_module(module)
        # What is there now is never garbage: not to look at it keeps its pages shared.
        gc.collect()
        gc.freeze()
        print(f"ready at {path}", flush=True)
        request, files = serve(listener)
    become(request, files)
    run(request.arguments)


def listen(path: Path) -> socket.socket:
    """Who connects waits until somebody accepts, as while the imports are made."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(new))
    new.chmod(0o600)
    listener.listen(64)
    # Whoever sees it can connect.
    new.replace(path)
    return listener


def serve(listener: socket.socket) -> tuple[Request, list[int]]:
    """Returns in the children only, with what each is to be and its files."""
    # The kernel buries them.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            connection.settimeout(_CONNECTION_SECONDS)
            peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
            if _PEER.unpack(peer)[1] != os.getuid():
                continue
            request, files = receive(connection)
            try:
                pid = _fork_twice() if request.detached else _fork()
                if pid == 0:
                    return request, files
                answer = f"ok {pid}"
            except OSError as error:
                answer = f"error {error}"
            for each in files:
                os.close(each)
            connection.sendall(answer.encode())


def _fork() -> int:
    # What is in a buffer would be written by both.
    sys.stdout.flush()
    sys.stderr.flush()
    return os.fork()


def _fork_twice() -> int:
    """The pid of a grandchild, whose parent is gone. Raises OSError."""
    reads, writes = os.pipe()
    with os.fdopen(reads) as answer:
        if _fork() != 0:
            os.close(writes)
            if pid := answer.read():
                return int(pid)
            raise OSError("no process could be made")
        _become_orphan(writes)
        return 0


def _become_orphan(writes: int) -> None:
    """Fork again, and leave as who was forked first, with a word of the pid."""
    try:
        pid = os.fork()
    except OSError:
        os._exit(1)
    if pid != 0:
        os.write(writes, str(pid).encode())
        os._exit(0)
    os.close(writes)


def become(request: Request, files: Sequence[int]) -> None:
    """Take the files, environment and folder of the request, and forget what an import has drawn from ours."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    for number, each in enumerate(files):
        if number < 3:
            os.dup2(each, number)
            os.close(each)
        else:
            os.set_inheritable(each, False)
    os.environ.clear()
    os.environ.update(request.environment)
    os.chdir(request.folder)
    if request.arguments[0] == "-m":
        # A worker of Ray gets a title by Ray, which finds the place for it only while our words are there.
        _rename([sys.executable, *request.arguments])
    # It keeps what TMPDIR was.
    tempfile.tempdir = None
    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()


def _rename(command: Sequence[str]) -> None:
    """Have `ps` show `command`, as far as there is room: its words take the place of ours, where the kernel reads them.

    arg_start and arg_end are fields 48 and 49 of /proc/self/stat, proc_pid_stat(5); a program may write there.
    """
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    words = "\0".join(command).encode()[: end - start - 1]
    ctypes.memmove(start, words.ljust(end - start, b"\0"), end - start)


def run(arguments: Sequence[str]) -> None:
    """As `python ARGUMENTS` does. Raises what that raises, SystemExit above all."""
    if arguments[0] == "-m":
        sys.argv = list(arguments[1:])
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(arguments)
        sys.path.insert(0, str(Path(arguments[0]).parent))
        runpy.run_path(arguments[0], run_name="__main__")
