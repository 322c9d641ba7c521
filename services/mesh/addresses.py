"""Where servers of the mesh listen and are reached: `host:port`, or `unix:/path` of a socket, which takes no port.

A port whose server died is anybody's to take; a socket in a folder that is closed to others is nobody else's.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Collection
from pathlib import Path

from services.mesh.errors import FailedPrecondition

PREFIX = "unix:"
# What sockaddr_un of Linux holds, less its end.
_LONGEST_PATH_BYTES = 107


def is_address(value: str) -> bool:
    """Whether it is `host:port`; port 0 lets the system choose."""
    host, _, port = value.rpartition(":")
    return bool(host and port.isascii() and port.isdecimal() and int(port) < 65536)


def is_socket(value: str) -> bool:
    """Whether it is `unix:` and an absolute path that is short enough."""
    path = value.removeprefix(PREFIX)
    return value.startswith(f"{PREFIX}/") and len(os.fsencode(path)) <= _LONGEST_PATH_BYTES


def check_target(address: str, owners: Collection[int] = ()) -> None:
    """To be called before a secret is sent to `address`. Raises FailedPrecondition for a socket whose folder is not
    there, is open to others, or belongs to neither us, root nor one of `owners`. Of a port it knows nothing.
    """
    if address.startswith(PREFIX):
        _check_folder(Path(address.removeprefix(PREFIX)).parent, {os.geteuid(), 0, *owners})


def check_listen(address: str) -> None:
    """To be called before `address` is listened on. Raises FailedPrecondition for a socket in a folder that is not ours
    alone, and for one that a server listens on; one that a killed server left is no hindrance.
    """
    if not address.startswith(PREFIX):
        return
    path = Path(address.removeprefix(PREFIX))
    _check_folder(path.parent, {os.geteuid()})
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        probe.connect(str(path))
        raise FailedPrecondition("SOCKET_TAKEN", f"a server listens on {path} already", path=path)


def _check_folder(folder: Path, owners: Collection[int]) -> None:
    """The folder itself: whoever may write to those above it, without the sticky bit, is trusted with them."""
    try:
        status = folder.lstat()
    except OSError as error:
        raise FailedPrecondition("NO_SOCKET", f"no socket in {folder}: {error.strerror}", path=folder) from None
    if not stat.S_ISDIR(status.st_mode) or status.st_uid not in owners or status.st_mode & 0o022:
        message = f"{folder} belongs to somebody else or others may write to it: no place for a socket"
        raise FailedPrecondition("FOLDER_NOT_OURS", message, path=folder)
