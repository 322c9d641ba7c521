"""Users of nobody: whom a program runs as in root's place, so that no other process of the machine is one with it.

Linux only: /proc.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import stat
from pathlib import Path

from services.mesh.processes import procfs
from services.supervisor.embedded.process import StartFailed, User

# Given to nobody: above the users of machines and below where systemd takes its own from (systemd.io/UIDS-GIDS), and
# within what a container without a mapping of its own has.
FIRST, LAST = 60_600, 61_183


def of_its_own(data: Path, programs: Path) -> User | None:
    """For the program whose data are in `data` and which lies in `programs`; None where we are not root.

    The one that has the data already, else one that no process and no account has. It passes closed folders only where
    the program could not be read otherwise, as in an environment below /root.
    """
    if os.geteuid() != 0:
        return None
    uid = _owner(data) or _free(data)
    return User(uid, uid, passes=not is_open(programs))


def with_an_account() -> User | None:
    """`nobody`, for a program that asks for the account of its user; None where we are not root.

    It passes closed folders, less for that than because no other process of `nobody` may then look into it.
    """
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        message = "there is no user `nobody`, who makes the database: add one, or be another user than root"
        raise StartFailed("NO_UNPRIVILEGED_USER", message) from None
    return User(entry.pw_uid, entry.pw_gid, passes=True)


def _owner(data: Path) -> int | None:
    try:
        uid = data.stat().st_uid
    except FileNotFoundError:
        return None
    return uid if FIRST <= uid <= LAST and not _has_account(uid) else None


def _free(data: Path) -> int:
    """Begins at a number of the folder's own: two that are started at once should not find the same one."""
    count = LAST - FIRST + 1
    start = int.from_bytes(hashlib.sha256(os.fsencode(data)).digest()[:4])
    busy = set(procfs.users())
    for offset in range(count):
        uid = FIRST + (start + offset) % count
        if uid not in busy and not _has_account(uid):
            return uid
    raise StartFailed("NO_FREE_USER", f"every user from {FIRST} to {LAST} is taken: be another user than root")


def _has_account(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def is_open(folder: Path) -> bool:
    """Whether everybody may pass to what lies in `folder`."""
    resolved = folder.resolve()
    return all(each.stat().st_mode & stat.S_IXOTH for each in (resolved, *resolved.parents))


def give(folder: Path, user: User) -> None:
    """Make everything in `folder` the user's; the folder itself at last, so that what was cut short begins again."""
    if folder.stat().st_uid == user.uid:
        return
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            os.chown(Path(place) / name, user.uid, user.gid, follow_symlinks=False)
    os.chown(folder, user.uid, user.gid)
