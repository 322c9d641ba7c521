"""Somebody without a secret who has the port of a process of ours, and keeps what is sent there."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

# The settings of HTTP/2, which a client waits for, and the acknowledgement of its own.
_SETTINGS = b"\0\0\0\4\0\0\0\0\0" + b"\0\0\0\4\1\0\0\0\0"


@dataclass
class Rogue:
    """`received` is what came in, after the handshake where it speaks TLS; of the handshakes some are `refused`, and
    some not."""

    received: bytearray = field(default_factory=bytearray)
    connections: int = 0
    refused: int = 0
    accepted: int = 0

    def heard(self, secret: str) -> bool:
        return secret.encode() in self.received


@contextlib.contextmanager
def rogue(port: int, certificate: Path | None = None, seconds: float = 20) -> Iterator[Rogue]:
    """Takes `port` as soon as it is free. With `certificate`, a file with its key, it speaks TLS and HTTP/2."""
    found = Rogue()
    listener = _take(port, seconds)
    context = None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        context.set_alpn_protocols(["h2", "grpc-exp"])
    thread = threading.Thread(target=_serve, args=(listener, context, found), daemon=True)
    thread.start()
    try:
        yield found
    finally:
        # Wakes the thread, which a mere close would not.
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()


def _take(port: int, seconds: float) -> socket.socket:
    deadline = time.monotonic() + seconds
    while True:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            listener.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.001)
        else:
            listener.listen(128)
            return listener


def _serve(listener: socket.socket, context: ssl.SSLContext | None, found: Rogue) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        found.connections += 1
        threading.Thread(target=_listen_to, args=(connection, context, found), daemon=True).start()


def _listen_to(connection: socket.socket, context: ssl.SSLContext | None, found: Rogue) -> None:
    with contextlib.suppress(OSError), connection:
        connection.settimeout(10)
        if context is not None:
            try:
                connection = context.wrap_socket(connection, server_side=True)
            except OSError:
                found.refused += 1
                return
            found.accepted += 1
        connection.sendall(_SETTINGS)
        while part := connection.recv(1 << 16):
            found.received += part
