"""Who listens where, as the kernel says."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_LISTEN = "0A"
_SOCKET = re.compile(r"socket:\[(\d+)\]")


@dataclass(frozen=True)
class Listener:
    """A TCP socket that takes connections; `title` is the command of the process that holds it."""

    pid: int
    title: str
    host: str
    port: int

    @property
    def loopback(self) -> bool:
        return ipaddress.ip_address(self.host).is_loopback


def listeners(pids: Iterable[int]) -> list[Listener]:
    """Every listening TCP socket, of IPv4 and IPv6, that one of these processes holds."""
    sockets = dict(_sockets())
    found = set()
    for pid in pids:
        for inode in _inodes(pid):
            if inode in sockets:
                found.add(Listener(pid, _title(pid), *sockets[inode]))
    return sorted(found, key=lambda each: (each.port, each.pid))


def _sockets() -> Iterator[tuple[str, tuple[str, int]]]:
    """Inode → address. See proc_pid_net(5)."""
    for file in ("tcp", "tcp6"):
        path = Path("/proc/net") / file
        for line in path.read_text().splitlines()[1:] if path.exists() else ():
            fields = line.split()
            if fields[3] == _LISTEN:
                host, _, port = fields[1].partition(":")
                yield fields[9], (_address(host), int(port, 16))


def _address(digits: str) -> str:
    """The kernel prints addresses as words of 32 bits in the machine's own byte order."""
    words = [int(digits[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(digits), 8)]
    address = ipaddress.ip_address(b"".join(words))
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)


def _inodes(pid: int) -> Iterator[str]:
    with contextlib.suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if match := _SOCKET.match(str(Path(entry.path).readlink())):
                    yield match[1]


def _title(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").split()
    except OSError:
        return ""
    return " ".join(words)
