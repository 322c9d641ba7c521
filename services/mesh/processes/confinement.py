"""Confining this process, for work on what a stranger made: it keeps the interpreter, some folders and no network.

A mount namespace with a root folder of its own, and one each for the network and for shared memory; what is left of
its privileges goes. Linux only. `services/rewards/sandbox/guest.py`, which runs a stranger's code, does more, and
imports nothing of this.

    python -m services.mesh.processes.confinement    # prints why this machine has none; nothing where it has
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import struct
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

_NEWNS, _NEWUTS, _NEWIPC, _NEWUSER, _NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x40000000
_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC, _MS_PRIVATE = 0x2, 0x4, 0x1000, 0x4000, 0x40000
_MNT_DETACH, _AT_FDCWD, _AT_RECURSIVE = 0x2, -100, 0x8000
# The same on every architecture: added after their tables were joined.
_SYS_MOUNT_SETATTR, _RDONLY, _NOSUID, _NODEV = 442, 0x1, 0x2, 0x4
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 22, 38
# Files of others that root may open: the one privilege that a folder of another user takes. Not the one that opens
# files by handle, wherever they are.
_CAP_DAC_OVERRIDE = 1 << 1
_SYS_PIVOT_ROOT, _SYS_CAPSET = {"x86_64": 155, "aarch64": 41}, {"x86_64": 126, "aarch64": 91}
# By machine: how the kernel calls it, and the numbers of what looks into other processes (ptrace, process_vm_readv and
# writev, pidfd_getfd), leaves a namespace (unshare, setns, mount, open_by_handle_at), or is what few have looked for
# holes in (io_uring_setup, keyctl, bpf, perf_event_open, userfaultfd).
_FORBIDDEN = {
    "x86_64": (0xC000003E, (101, 310, 311, 438, 272, 308, 165, 304, 425, 250, 321, 298, 323)),
    "aarch64": (0xC00000B7, (117, 270, 271, 438, 97, 268, 40, 265, 425, 219, 280, 241, 282)),
}
# What an interpreter and the wheels in its environment need besides their own folders.
_SYSTEM = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache", "/usr/share/zoneinfo")
# Copied, since they lie in folders that tell of others: how many processors there are, and what they can.
_MACHINE = ("/proc/cpuinfo", "/proc/meminfo", *(f"/sys/devices/system/cpu/{name}" for name in ("possible", "present")))
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
# Where the new root is put together: a folder that there is everywhere, and that is not seen from inside.
_BASE, _TMP, _TMP_BYTES = "/proc", "/tmp", 64 << 20  # noqa: S108 - its own
_libc = ctypes.CDLL(None, use_errno=True)


class _Refused(Exception):
    """The kernel, or whoever rules it, does not let us."""


def confine(readable: Iterable[Path], writable: Iterable[Path]) -> str:
    """Keep `readable` and `writable`, absolute paths, and what the interpreter needs. Once and for all, in a process of
    one thread. Afterwards its folder is an empty /tmp of its own.

    Answers "" or, where the machine does not allow it, why: then this process sees what it saw, or keeps a privilege.
    """
    kept = {str(path): False for path in (*_interpreter(), *readable)} | {str(path): True for path in writable}
    machine = {path: _content(path) for path in _MACHINE}
    try:
        _number(_SYS_PIVOT_ROOT)
        _unshare()
        _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
        _mount("tmpfs", _BASE, "tmpfs", _MS_NOSUID | _MS_NODEV, f"size={_TMP_BYTES},mode=755")
    except (_Refused, OSError) as error:
        return str(error)
    try:
        _furnish(kept, machine)
        os.chdir(_BASE)
        _call("pivot_root", _libc.syscall(_number(_SYS_PIVOT_ROOT), b".", b"."))
    except (_Refused, OSError) as error:
        os.chdir("/")
        _libc.umount2(_BASE.encode(), _MNT_DETACH)
        return str(error)
    try:
        _call("umount", _libc.umount2(b".", _MNT_DETACH))
        os.chdir(_TMP)
        _give_up()
    except (_Refused, OSError) as error:
        return str(error)
    return ""


def confine_or_say(readable: Iterable[Path], writable: Iterable[Path]) -> None:
    """`confine`, relative paths too; where the machine does not allow it, a line on standard error says so."""
    if why := confine(map(Path.absolute, readable), map(Path.absolute, writable)):
        sys.stderr.write(f"not confined, {why}: this process sees what its user may see\n")


def _interpreter() -> list[str]:
    """Folders of the interpreter, of its packages and of ours, without what lies beside these."""
    packages = [
        str(place)
        for name in ("services", "rlhf")
        if (spec := importlib.util.find_spec(name))
        for place in spec.submodule_search_locations or ()
    ]
    sites = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    return [os.path.realpath(sys.base_prefix), sys.base_prefix, sys.prefix, *sites, *packages, *_SYSTEM]


def _unshare() -> None:
    """As who may, or in a namespace of users where one may."""
    flags = _NEWNS | _NEWUTS | _NEWIPC | _NEWNET
    if _libc.unshare(flags) == 0:
        return
    user, group = (f"{number} {number} 1" for number in (os.geteuid(), os.getegid()))
    _call("unshare", _libc.unshare(flags | _NEWUSER))
    for path, text in (("setgroups", "deny"), ("uid_map", user), ("gid_map", group)):
        Path(f"/proc/self/{path}").write_text(text)


def _furnish(kept: dict[str, bool], machine: dict[str, bytes]) -> None:
    """The root folder: what is `kept`, writable or to be read, an empty /tmp, and a few devices."""
    _make_folder(_BASE + _TMP)
    # Before what is kept, some of which may lie in it; outer folders before those inside them.
    _mount("tmpfs", _BASE + _TMP, "tmpfs", _MS_NOSUID | _MS_NODEV, f"size={_TMP_BYTES},mode=1777")
    for path in sorted(kept, key=len):
        _bind(path)
    for device in _DEVICES:
        _touch(_BASE + device)
    for path, content in machine.items():
        _touch(_BASE + path)
        Path(_BASE + path).write_bytes(content)
    # Over the whole: what was mounted under it is no longer written to either.
    _set_attributes(_BASE, _AT_RECURSIVE, _RDONLY | _NOSUID | _NODEV, 0)
    for path in (_TMP, *(path for path, writable in kept.items() if writable)):
        _set_attributes(_BASE + path, 0, 0, _RDONLY)
    # Afterwards, for no device is opened through a mount that was set so.
    for device in _DEVICES:
        _mount(device, _BASE + device, None, _MS_BIND)


def _bind(path: str) -> None:
    if Path(path).is_dir():
        _make_folder(_BASE + path)
    elif Path(path).exists():
        _touch(_BASE + path)
    else:
        return
    _mount(path, _BASE + path, None, _MS_BIND | _MS_REC)


def _make_folder(path: str) -> None:
    Path(path).mkdir(parents=True, exist_ok=True)


def _touch(path: str) -> None:
    _make_folder(str(Path(path).parent))
    Path(path).touch()


def _content(path: str) -> bytes:
    with suppress(OSError):
        return Path(path).read_bytes()
    return b""


def _give_up() -> None:
    """Privileges, and calls that no work on data needs."""
    header = struct.pack("=II", 0x20080522, 0)
    privileges = struct.pack("=IIIIII", _CAP_DAC_OVERRIDE, _CAP_DAC_OVERRIDE, 0, 0, 0, 0)
    if _libc.syscall(_number(_SYS_CAPSET), header, privileges) != 0:
        _call("capset", _libc.syscall(_number(_SYS_CAPSET), header, bytes(24)))
    _call("no_new_privs", _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    kernel, numbers = _FORBIDDEN[platform.machine()]
    load, equal, at_least, answer = 0x20, 0x15, 0x35, 0x06
    kill, refuse, allow = 0x80000000, 0x00050001, 0x7FFF0000
    count = len(numbers)
    program = [(load, 0, 0, 4), (equal, 1, 0, kernel), (answer, 0, 0, kill), (load, 0, 0, 0)]
    # x32, which has numbers of its own for the same calls.
    program.append((at_least, count + 1, 0, 0x40000000))
    program += [(equal, count - index, 0, number) for index, number in enumerate(numbers)]
    program += [(answer, 0, 0, allow), (answer, 0, 0, refuse)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *one) for one in program))
    _call("seccomp", _libc.prctl(_PR_SET_SECCOMP, 2, struct.pack("@HP", len(program), ctypes.addressof(code)), 0, 0))


def _set_attributes(path: str, flags: int, set_: int, clear: int) -> None:
    number, attributes = ctypes.c_long(_SYS_MOUNT_SETATTR), struct.pack("=QQQQ", set_, clear, 0, 0)
    result = _libc.syscall(number, _AT_FDCWD, path.encode(), flags, attributes, ctypes.c_size_t(32))
    _call("mount_setattr (Linux 5.12)", result)


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    words: Sequence[bytes | None] = [None if word is None else os.fsencode(word) for word in (source, target, kind)]
    _call(f"mount {target}", _libc.mount(*words, ctypes.c_ulong(flags), options.encode() if options else None))


def _number(table: dict[str, int]) -> ctypes.c_long:
    if (machine := platform.machine()) not in table:
        raise _Refused(f"not known on {machine}")
    return ctypes.c_long(table[machine])


def _call(what: str, result: int) -> None:
    if result < 0:
        raise _Refused(f"{what}: {os.strerror(ctypes.get_errno())}")


def main() -> int:
    why = confine([], [])
    sys.stdout.write(why)
    return 1 if why else 0


if __name__ == "__main__":
    sys.exit(main())
