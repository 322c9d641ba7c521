"""A process that confines itself sees its folders and nothing else, and says where the machine does not let it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fix_namespaces import NO_NAMESPACES

BEGIN = """
import ctypes, json, os, socket, sys
from pathlib import Path
from services.mesh.processes import confinement
read, write, secret = map(Path, sys.argv[1:])
"""


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    """One to read, one to write to, and a file beside them."""
    for name in ("read", "write"):
        (tmp_path / name).mkdir()
    (tmp_path / "read" / "file").write_text("to be read")
    (tmp_path / "secret").write_text("not to be read")
    return tmp_path / "read", tmp_path / "write", tmp_path / "secret"


def said(script: str, folders: tuple[Path, Path, Path]) -> dict:
    """What the script prints as JSON."""
    command = [sys.executable, "-c", BEGIN + script, *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


needs_namespaces = pytest.mark.skipif(bool(NO_NAMESPACES), reason=NO_NAMESPACES)

LOOK = """
def may_write(path):
    try:
        path.write_text("x")
    except OSError:
        return False
    return True

def connected():
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True

listening = socket.create_server(("127.0.0.1", 0))
port = listening.getsockname()[1]
before = connected()
parent = os.getppid()
why = confinement.confine([read], [write])
libc = ctypes.CDLL(None, use_errno=True)
found = {
    "why": why,
    "connected": [before, connected()],
    "read": (read / "file").read_text(),
    "there": [path for path in (str(secret), "/etc/passwd", "/proc/1", "/proc/self") if os.path.exists(path)],
    "beside": sorted(os.listdir(read.parent)),
    "written": [str(path) for path in (read / "x", write / "x", Path("/x"), Path("/usr/lib/x")) if may_write(path)],
    "own": may_write(Path("/tmp/x")),
    "attached": libc.ptrace(16, parent, 0, 0),
    "unshared": libc.unshare(0x10000000),
    "mounted": libc.mount(b"/", b"/tmp", None, 0x1000, None),
    "node": libc.mknod(str(write / "disk").encode(), 0o060600, os.makedev(8, 0)),
    "null": Path("/dev/null").write_text("x"),
}
import msgspec.json, services.trainer.entities
print(json.dumps(found))
"""


@needs_namespaces
def test_it_keeps_its_folders_and_no_network(folders: tuple[Path, Path, Path]) -> None:
    found = said(LOOK, folders)
    assert (found["why"], found["read"], found["null"]) == ("", "to be read", 1)
    assert found["connected"] == [True, False]
    assert (found["there"], found["beside"]) == ([], ["read", "write"])
    assert (found["written"], found["own"]) == ([str(folders[1] / "x")], True)
    assert [found[name] for name in ("attached", "unshared", "mounted", "node")] == [-1] * 4
    assert sorted(path.name for path in folders[0].iterdir()) == ["file"]


@needs_namespaces
@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_so_does_one_without_privileges(folders: tuple[Path, Path, Path]) -> None:
    """By a namespace of users; where there is none to be had it says so, and goes on as it was."""
    for path in (folders[0], folders[1], *folders[0].parents):
        if path.stat().st_uid == 0 and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o005)
    os.chown(folders[1], 65534, 65534)
    become = """
confinement._interpreter = lambda: ["/usr/lib"]
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
why = confinement.confine([read], [write])
print(json.dumps({"why": why, "read": (read / "file").read_text(), "there": secret.exists(), "id": os.getuid()}))
"""
    found = said(become, folders)
    assert (found["read"], found["id"]) == ("to be read", 65534)
    assert found["there"] == bool(found["why"])


@needs_namespaces
def test_where_it_may_not_it_says_why_and_sees_what_it_saw(folders: tuple[Path, Path, Path]) -> None:
    found = said(
        """
late = confinement.confine([Path("/" + "x" * 300)], [])
restored = [Path("/proc/self/status").exists(), secret.exists()]
first = confinement.confine([read, secret], [write])
second = confinement.confine([read], [])
print(json.dumps({"late": late, "restored": restored, "first": first, "second": second, "there": secret.exists()}))
""",
        folders,
    )
    assert "File name too long" in found["late"] and found["restored"] == [True, True]
    assert (found["first"], found["there"]) == ("", True)
    assert found["second"] == "unshare: Operation not permitted"
