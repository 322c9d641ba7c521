"""The fork server as a process of its own, asked over its socket."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from services.mesh.processes.fork_server.client import MAX_REQUEST_BYTES, Forked, ForkServerUnavailable, Request, fork

# The script of the server is long enough a command for those of its children.
SERVER = """
import sys
from pathlib import Path
from services.mesh.processes.fork_server import server
server.main(Path(sys.argv[1]), ["decimal", "numpy"])
"""
# What a process finds of itself, as JSON on its output.
TELL = """
import json, os, random, sys, tempfile
import numpy
print(json.dumps({
    "arguments": sys.argv[1:], "variable": os.environ.get("OURS"), "path": os.environ.get("PATH"),
    "folder": os.getcwd(), "temporary": tempfile.gettempdir(), "session": os.getsid(0), "parent": os.getppid(),
    "random": random.random(), "numpy": numpy.random.random(), "input": sys.stdin.read(),
    "files": sorted(int(each) for each in os.listdir("/proc/self/fd")),
}))
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    path = tmp_path / "forks"
    process = subprocess.Popen([sys.executable, "-c", SERVER, str(path)], cwd="/")
    while not path.exists():
        assert process.poll() is None
        time.sleep(0.01)
    yield path, process
    process.kill()
    process.wait()


@pytest.fixture
def ask(server: tuple[Path, Any], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Have a process forked that tells of itself."""
    script = tmp_path / "tell.py"
    script.write_text(TELL)
    (tmp_path / "folder").mkdir()
    (tmp_path / "input").write_text("asked")

    def tell(*arguments: str, detached: bool = False, **variables: str) -> dict[str, Any]:
        environment = {"OURS": "yes", **variables}
        request = Request((str(script), *arguments), environment, str(tmp_path / "folder"), detached)
        with (tmp_path / "input").open() as asked, (tmp_path / "told").open("w+") as told:
            process = Forked(fork(server[0], request, [asked.fileno(), told.fileno(), told.fileno()]))
            assert process.wait(30)
            return {**json.loads(Path(told.name).read_text()), "pid": process.pid}

    return tell


def open_files(pid: int) -> int:
    """Between two requests: of one that was just answered it may still close the connection."""
    counts = [0]
    while len(counts) < 10 or len(set(counts[-10:])) > 1:
        counts.append(len(list(Path(f"/proc/{pid}/fd").iterdir())))
        time.sleep(0.01)
    return counts[-1]


def test_a_process_is_what_was_asked_for(
    ask: Callable[..., dict[str, Any]], server: tuple[Path, subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    told = ask("a b", "--c=d", TMPDIR=str(tmp_path))
    assert told["arguments"] == ["a b", "--c=d"]
    assert (told["variable"], told["path"]) == ("yes", None), "the environment is all of it"
    assert told["folder"] == str(tmp_path / "folder")
    assert told["temporary"] == str(tmp_path)
    assert told["input"] == "asked"
    assert told["session"] == told["pid"], "it has a session of its own"
    assert told["parent"] == server[1].pid
    assert ask()["temporary"] == "/tmp"


def test_a_detached_process_is_no_descendant(
    ask: Callable[..., dict[str, Any]], server: tuple[Path, subprocess.Popen[bytes]]
) -> None:
    told = ask(detached=True)
    assert told["parent"] != server[1].pid
    assert told["session"] == told["pid"]


def test_processes_draw_different_numbers_and_keep_no_files(
    ask: Callable[..., dict[str, Any]], server: tuple[Path, subprocess.Popen[bytes]]
) -> None:
    told = [ask(detached=detached) for detached in (False, False, True, True)]
    assert len({each["random"] for each in told}) == len({each["numpy"] for each in told}) == 4
    # The fourth is the folder that it lists.
    assert all(each["files"] == [0, 1, 2, 3] for each in told), told
    before = open_files(server[1].pid)
    for _ in range(5):
        ask()
    assert open_files(server[1].pid) == before
    zombies = subprocess.run(["ps", "--ppid", str(server[1].pid), "-o", "stat="], capture_output=True, check=False)
    assert b"Z" not in zombies.stdout


def test_a_module_bears_its_own_command_line(server: tuple[Path, Any], tmp_path: Path) -> None:
    """`http.server`, because it stays until it is ended."""
    request = Request(("-m", "http.server", "0", "--bind=127.0.0.1"), dict(os.environ), str(tmp_path))
    with (tmp_path / "told").open("w+") as told:
        process = Forked(fork(server[0], request, [0, told.fileno(), told.fileno()]))
        words = [sys.executable, *request.arguments]
        deadline = time.monotonic() + 30
        while Path(f"/proc/{process.pid}/cmdline").read_text().rstrip("\0").split("\0") != words:
            assert time.monotonic() < deadline, Path(told.name).read_text()
            time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(30)


def test_more_files_are_kept_open(server: tuple[Path, Any], tmp_path: Path) -> None:
    """A lock is held until the process that was given it has ended."""
    script = tmp_path / "wait.py"
    script.write_text("import sys; sys.stdin.read()")
    reads, writes = os.pipe()
    theirs, ours = socket.socketpair()
    request = Request((str(script),), {}, str(tmp_path))
    process = Forked(fork(server[0], request, [reads, 1, 2, theirs.fileno()]))
    theirs.close()
    os.close(reads)
    ours.settimeout(0.2)
    with pytest.raises(TimeoutError):
        ours.recv(1)
    assert not process.wait(0)
    os.close(writes)
    assert process.wait(30)
    assert ours.recv(1) == b""
    ours.close()


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"\x01",
        struct.pack("<I", 5) + b"hello",
        struct.pack("<I", 100) + b"half",
        struct.pack("<I", MAX_REQUEST_BYTES + 1),
        struct.pack("<I", 2) + b"[]",
        struct.pack("<I", 2) + b"{}",
    ],
)
@pytest.mark.parametrize("files", [0, 2, 3])
def test_nonsense_does_no_harm(
    sent: bytes, files: int, ask: Callable[..., dict[str, Any]], server: tuple[Path, subprocess.Popen[bytes]]
) -> None:
    ask()
    before = open_files(server[1].pid)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(server[0]))
        socket.send_fds(connection, [sent], [0, 1, 2][:files])
        connection.shutdown(socket.SHUT_WR)
        # Where it has left something unread.
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(10) == b""
    assert ask()["variable"] == "yes"
    assert open_files(server[1].pid) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="to be somebody else takes root")
def test_another_user_is_not_served(server: tuple[Path, subprocess.Popen[bytes]], tmp_path: Path) -> None:
    """Even where somebody has opened the socket to all."""
    server[0].chmod(0o777)
    for folder in (tmp_path, *tmp_path.parents):
        if folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o011)
    code = f"""
import os
from services.mesh.processes.fork_server.client import *
os.setuid(65534)
try:
    fork({str(server[0])!r}, Request(("-m", "this"), {{}}, "/"), [0, 1, 2])
except ForkServerUnavailable as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("fork server"), done


def test_a_server_that_is_not_there_or_dies_is_told(
    server: tuple[Path, subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    request = Request(("-m", "this"), {}, "/")
    with pytest.raises(ForkServerUnavailable):
        fork(tmp_path / "none", request, [0, 1, 2])
    server[1].kill()
    server[1].wait()
    with pytest.raises(ForkServerUnavailable):
        fork(server[0], request, [0, 1, 2])


def test_who_asks_while_it_imports_is_served_afterwards(tmp_path: Path) -> None:
    """And who asks one that dies of its imports learns that."""
    slow = "import sys, time\nfrom pathlib import Path\nfrom services.mesh.processes.fork_server import server\n"
    (tmp_path / "slow_import.py").write_text(
        "import time, os\ntime.sleep(0.5)\nif os.environ.get('BROKEN'): raise OSError"
    )
    code = slow + 'server.main(Path(sys.argv[1]), ["slow_import"])'
    (tmp_path / "script.py").write_text("import sys; print('slow_import' in sys.modules)")
    for broken in ("", "yes"):
        path, told = tmp_path / f"forks{broken}", tmp_path / "told"
        environment = {**os.environ, "PYTHONPATH": str(tmp_path), "BROKEN": broken}
        process = subprocess.Popen([sys.executable, "-c", code, str(path)], env=environment, stderr=subprocess.DEVNULL)
        while not path.exists():
            time.sleep(0.01)
        with told.open("w") as output:
            request = Request((str(tmp_path / "script.py"),), {}, "/")
            if broken:
                with pytest.raises(ForkServerUnavailable):
                    fork(path, request, [0, output.fileno(), 2])
            else:
                assert Forked(fork(path, request, [0, output.fileno(), 2])).wait(30)
        process.kill()
        process.wait()
        assert told.read_text() == ("" if broken else "True\n")
