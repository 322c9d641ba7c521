"""Free ports of 127.0.0.1."""

from __future__ import annotations

import random
import socket

# Below the range that Linux gives to outgoing connections (32768-60999): otherwise one of those could take the port of
# a service while it restarts.
LOWEST, HIGHEST = 20_000, 31_999


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    with socket.socket() as probe:
        # As servers do: a port whose last connection is in TIME_WAIT counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def free_port(taken: set[int] | None = None) -> int:
    """A port nobody listens on and that is not in `taken`, to which it is added. Raises OSError when there is none."""
    taken = set() if taken is None else taken
    candidates = range(LOWEST, HIGHEST + 1)
    for port in random.sample(candidates, len(candidates)):
        if port not in taken and is_free(port):
            taken.add(port)
            return port
    raise OSError(f"no free port from {LOWEST} to {HIGHEST}")
