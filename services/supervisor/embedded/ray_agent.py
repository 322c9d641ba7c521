"""Runs Ray's runtime environment agent for this user alone: `python ray_agent.py FILE ARGUMENT…`.

The raylet sends that agent the token of Ray by plain HTTP, and starts what it answers. Who takes the port of an agent
that has died would get both; so `ray start` holds the port for as long as it lives, and the kernel lets only processes
of the same user share it (SO_REUSEPORT of socket(7)). Nor does the agent hear anybody else, whatever token he has.
"""

from __future__ import annotations

import os
import runpy
import socket
import sys
from pathlib import Path
from typing import Any

_ESTABLISHED = "01"
# Kept open until the process ends.
_held: list[socket.socket] = []


class OwnSocket(socket.socket):
    """A socket that shares its port with others of this user, and accepts connections from this user alone."""

    def bind(self, address: Any, /) -> None:
        self.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        super().bind(address)

    def accept(self) -> tuple[socket.socket, Any]:
        connection, peer = super().accept()
        if uid_of_peer(connection) != os.geteuid():
            connection.close()
            # What a server takes for a client that has gone already.
            raise ConnectionAbortedError
        return connection, peer


def uid_of_peer(connection: socket.socket) -> int | None:
    """The user who has the other end, which is on this machine, as /proc/net/tcp says. None where that end is closed:
    its row then belongs to nobody."""
    ends = tuple(_as_the_kernel_writes(*end) for end in (connection.getpeername(), connection.getsockname()))
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if (fields[1], fields[2], fields[3]) == (*ends, _ESTABLISHED):
            return int(fields[7])
    return None


def _as_the_kernel_writes(host: str, port: int) -> str:
    return f"{int.from_bytes(socket.inet_aton(host), sys.byteorder):08X}:{port:04X}"


def hold() -> int:
    """A port of 127.0.0.1 that only processes of this user can bind while this one lives, and on which it doesn't
    listen itself."""
    held = OwnSocket()
    held.bind(("127.0.0.1", 0))
    _held.append(held)
    return held.getsockname()[1]


if __name__ == "__main__":
    # Of all sockets of this process only this one is bound to a port.
    socket.socket = OwnSocket
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
