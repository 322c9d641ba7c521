"""Fixtures: another user of the machine who takes the place of a server and writes down what callers tell him."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from services.mesh import addresses

# Whom no passwd entry names, and who has no right to anything.
ROGUE_UID = 54_321
_PROGRAM = """
import os, sys, time
from concurrent.futures import ThreadPoolExecutor
import grpc

class Record(grpc.GenericRpcHandler):
    def service(self, details):
        print("CALL", details.method, dict(details.invocation_metadata), flush=True)

def take(address):
    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((Record(),))
    server.add_insecure_port(address)
    server.start()
    return server

# Only now: Python and its packages may lie where this user sees nothing.
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(int(sys.argv[1]))
    os.setuid(int(sys.argv[1]))
servers = {}
print("HERE", flush=True)
while True:
    for address in sys.argv[2:]:
        if address not in servers:
            try:
                servers[address] = take(address)
                print("TAKEN", address, flush=True)
            except RuntimeError:
                pass
    time.sleep(0.02)
"""


@contextlib.contextmanager
def rogue(folder: Path, *wanted: str) -> Iterator[Path]:
    """A file with what is told to somebody who takes each of these addresses of gRPC as soon as he can."""
    heard = folder / "heard"
    with heard.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _PROGRAM, str(ROGUE_UID), *wanted],
            stdout=output,
            stderr=subprocess.DEVNULL,
        )
    try:
        yield heard
    finally:
        process.kill()
        process.wait(10)


@contextlib.contextmanager
def socket_folder() -> Iterator[Path]:
    """Ours alone, and with a short path: that of a socket may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="rlhf-test-", dir="/tmp") as folder:
        yield Path(folder)


def tell(home: Path, path: Path, *, pid: int | None = None, **ports: str) -> str:
    """Write the `run/endpoints.json` of a mesh whose gateway has the socket `path`, and `ports` by what they speak.
    The address of the socket.
    """
    (home / "run").mkdir(parents=True, exist_ok=True)
    address = f"{addresses.PREFIX}{path}"
    (home / "run" / "endpoints.json").write_text(json.dumps({**ports, "socket": address, "pid": pid or os.getpid()}))
    return address
