"""Becomes another program after setting what only a process can set for itself: death signal, user, capability.

Run as `python -I -S launch.py OPTIONS -- PROGRAM ARGUMENT…` and not as a `preexec_fn`: code between fork and exec of a
process with threads can deadlock, and this keeps the parent on vfork. Imports the standard library only, so it costs
some 20 ms.

Linux only: prctl(2), capabilities(7).
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_KEEPCAPS = 8
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
PR_CAPBSET_READ = 23
CAPABILITY_VERSION_3 = 0x20080522
CAP_DAC_OVERRIDE = 1
CAP_DAC_READ_SEARCH = 2

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def die_with_parent(number: int, parent: int) -> None:
    """The kernel sends signal `number` when the parent dies. Forgotten when the user changes, so set it after that."""
    _check(_libc.prctl(PR_SET_PDEATHSIG, number, 0, 0, 0), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it died before we asked
        os.kill(os.getpid(), number)


def searching_capability() -> int | None:
    """The weakest capability this machine grants that passes through folders closed to the user, or None.

    Containers as Docker makes them lack CAP_DAC_READ_SEARCH but have CAP_DAC_OVERRIDE.
    """
    for capability in (CAP_DAC_READ_SEARCH, CAP_DAC_OVERRIDE):
        if _libc.prctl(PR_CAPBSET_READ, capability, 0, 0, 0) == 1:
            return capability
    return None


def become(uid: int, gid: int, keep: int | None) -> None:
    """Drops root for `uid`, keeping the capability `keep` across the exec that follows."""
    if keep is not None:
        _check(_libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0), "prctl(PR_SET_KEEPCAPS)")
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
    if keep is None:
        return
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    # Two blocks (capabilities 0-31, 32-63) of effective, permitted, inheritable.
    sets = (ctypes.c_uint32 * 6)(1 << keep, 1 << keep, 1 << keep, 0, 0, 0)
    _check(_libc.capset(ctypes.byref(header), ctypes.byref(sets)), "capset")
    _check(_libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, keep, 0, 0), "prctl(PR_CAP_AMBIENT_RAISE)")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--parent", type=int, default=0, help="pid whose death ends the program")
    parser.add_argument("--death-signal", type=int, default=signal.SIGTERM)
    parser.add_argument("--uid", type=int, default=0, help="run as this user; 0 stays who we are")
    parser.add_argument("--gid", type=int, default=0)
    parser.add_argument("--pass-closed-folders", action="store_true", help="the user may pass folders closed to it")
    parser.add_argument("--folder", help="where to work; entered as who we are, whatever the user may pass")
    parser.add_argument("program", nargs="+")
    options = parser.parse_args(arguments)
    if options.folder:
        os.chdir(options.folder)
    if options.uid:
        become(options.uid, options.gid, searching_capability() if options.pass_closed_folders else None)
    os.umask(0o077)
    if options.parent:
        die_with_parent(options.death_signal, options.parent)
    os.execv(options.program[0], options.program)  # noqa: S606 - the program is what we were asked to become


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except OSError as error:
        sys.exit(f"{Path(sys.argv[0]).name}: cannot start: {error}")
