"""The process that parses a stranger's file, were its parser taken over: what it would see."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from services.dataset.uploads.options import UploadOptions
from services.dataset.uploads.sandbox import HEADER, Reading
from tests.fix_namespaces import NO_NAMESPACES

# In place of the parser.
TAKEN_OVER = """
import json, os, socket, sys
from services.dataset.uploads import sandbox_main as sandboxed

def run(path, file_name, format_name, options, send):
    def may_connect():
        try:
            socket.create_connection(("127.0.0.1", int(file_name)), 1).close()
        except OSError:
            return False
        return True

    open("scratch", "w").write("x")
    open(os.environ["TMPDIR"] + "/x", "w").write("x")
    seen = [name for name in (str(path), str(path.parent / "secret"), "/etc/passwd", "/proc/1") if os.path.exists(name)]
    send(b"E", json.dumps({"seen": seen, "connected": may_connect()}).encode())

sandboxed.run = run
sandboxed.main(sys.argv[1:])
"""


@pytest.mark.skipif(bool(NO_NAMESPACES), reason=NO_NAMESPACES)
def test_it_sees_the_file_and_a_place_for_its_own(tmp_path: Path) -> None:
    upload, scratch = tmp_path / "rows.jsonl", tmp_path / "scratch"
    upload.write_text("{}\n")
    (tmp_path / "secret").write_text("x")
    scratch.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = str(listening.getsockname()[1])
        reading = Reading(upload, port, "messages", UploadOptions(), scratch, 2 << 30, 60)
        command = [sys.executable, "-P", "-c", TAKEN_OVER, *reading.command()[4:]]
        environment = {"TMPDIR": str(scratch), "PYTHONPATH": ":".join(filter(None, sys.path))}
        assert reading.command()[4] == str(os.getpid())
        done = subprocess.run(command, cwd=scratch, env=environment, capture_output=True, timeout=60)
    found = msgspec.json.decode(done.stdout[HEADER.size :])
    assert found == {"seen": [str(upload)], "connected": False}, done.stderr
    assert [path.name for path in scratch.iterdir()] == ["x"]
