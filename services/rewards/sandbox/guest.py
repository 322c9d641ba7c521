"""The process in which a user's reward runs: `python -I guest.py WATCH`, started by host.py. Standard library alone,
since nothing else is to be seen from inside.

Two processes. The outer one makes the namespaces, starts the inner one as the first process of a PID namespace, and
waits: it kills it, and with it whatever it has started, when the other end of the pipe WATCH is closed. The inner one
builds itself a root folder of the interpreter and a small /tmp, goes into it, gives up its user and its privileges, and
only then runs the user's code.

Frames in and out: 4 bytes of length big-endian, JSON. In: the settings, then {"samples": […]} each. Out: {"pid"} of the
inner process, {"caged"}, after which it may be the code that speaks, {"ready"}, {"scores"} each or {"error", "index"}.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import struct
import sys
import traceback
from collections.abc import Callable
from typing import Any

_CLONE = {"NEWNS": 0x20000, "NEWUTS": 0x4000000, "NEWIPC": 0x8000000, "NEWPID": 0x20000000, "NEWNET": 0x40000000}
_CLONE_NEWUSER = 0x10000000
_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC, _MS_PRIVATE = 0x2, 0x4, 0x1000, 0x4000, 0x40000
_MNT_DETACH, _AT_FDCWD, _AT_RECURSIVE = 0x2, -100, 0x8000
# The same on every architecture: added after their tables were joined.
_SYS_MOUNT_SETATTR, _RDONLY, _READ_ONLY = 442, 0x1, 0x1 | 0x2 | 0x4
_SYS_PIVOT_ROOT, _SYS_CAPSET = {"x86_64": 155, "aarch64": 41}, {"x86_64": 126, "aarch64": 91}
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
# Users of nobody, where systemd takes its own from: one a process, so that its limits are its own.
_FIRST_USER, _USERS = 61_184, 4_096
# Without /dev/zero: what is mapped from it and shared is memory under no limit, as in seccomp.py.
_DEVICES, _TMP_BYTES, _TRACE_CHARACTERS = ("null", "urandom"), 64 << 20, 2_000
# Empty files count for no bytes, and take the kernel's memory.
_TMP_FILES = 4_096
_HEADER = struct.Struct(">I")

_libc = ctypes.CDLL(None, use_errno=True)


class _NoIsolation(Exception):
    """The kernel, or whoever rules it, does not let us."""


def main(watch: int) -> None:
    # Whoever starts us may close to others what he makes; what we make is for another user.
    os.umask(0o022)
    settings = _read()
    try:
        if settings["isolated"]:
            _unshare()
        told, tell = os.pipe()
        inner = os.fork()
    except (_NoIsolation, OSError) as error:
        _write({"error": str(error)})
        return
    if inner:
        _write({"pid": inner})
        os.close(tell)
        _guard(inner, watch)
        return
    os.close(watch)
    os.close(tell)
    # Until the pid has been told: frames come in this order.
    os.read(told, 1)
    os.close(told)
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        if settings["isolated"]:
            _enter_cage(settings["visible"])
        _give_up(settings)
    except Exception as error:  # whatever it is, the code must not run without it
        _write({"error": str(error)})
    else:
        _write({"caged": True})
        _serve(settings["source"])


def _guard(inner: int, watch: int) -> None:
    """Wait for the inner process; end it when whoever started us is gone or wants it gone."""
    os.close(0)
    os.close(1)
    while True:
        gone, status = os.waitpid(inner, os.WNOHANG)
        if gone:
            os._exit(128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status))
        if select.select([watch], [], [], 0.1)[0]:
            os.kill(inner, signal.SIGKILL)


def _unshare() -> None:
    """As who may, or in a namespace of users where one may."""
    if _libc.unshare(flags := sum(_CLONE.values())) == 0:
        return
    user, group = (f"{number} {number} 1" for number in (os.geteuid(), os.getegid()))
    _call("unshare", _libc.unshare(flags | _CLONE_NEWUSER))
    for path, text in (("setgroups", "deny"), ("uid_map", user), ("gid_map", group)):
        with open(f"/proc/self/{path}", "w") as file:  # noqa: PTH123 - pathlib is more than this needs
            file.write(text)


def _enter_cage(visible: list[str]) -> None:
    """A root folder with what is `visible`, to be read, and /tmp and two devices; all else is gone."""
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    # A folder that there is everywhere; mounted over where nobody else sees it.
    base = "/proc"
    _mount("tmpfs", base, "tmpfs", _MS_NOSUID | _MS_NODEV, f"size={_TMP_BYTES},mode=755")
    # Before what is visible, some of which may lie in it.
    os.mkdir(base + "/tmp")  # noqa: PTH102, S108
    options = f"size={_TMP_BYTES},nr_inodes={_TMP_FILES},mode=1777"
    _mount("tmpfs", base + "/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV, options)  # noqa: S108
    for path in visible:
        _bind(path, base + path)
    for device in _DEVICES:
        _touch(f"{base}/dev/{device}")
    os.chdir(base)
    # Over the whole: what was mounted under it is no longer written to either.
    _set_attributes(".", _AT_RECURSIVE, _READ_ONLY, 0)
    _set_attributes("tmp", 0, 0, _RDONLY)
    # Afterwards, for no device is opened through a mount that was set so.
    for device in _DEVICES:
        _mount(f"/dev/{device}", f"dev/{device}", None, _MS_BIND)
    _call("pivot_root", _libc.syscall(_number(_SYS_PIVOT_ROOT), b".", b"."))
    _call("umount", _libc.umount2(b".", _MNT_DETACH))
    os.chdir("/tmp")  # noqa: S108


def _bind(source: str, target: str) -> None:
    if os.path.isdir(source):  # noqa: PTH112
        os.makedirs(target, exist_ok=True)  # noqa: PTH103
    elif os.path.exists(source):  # noqa: PTH110
        _touch(target)
    else:
        return
    _mount(source, target, None, _MS_BIND | _MS_REC)


def _touch(path: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o644))


def _set_attributes(path: str, flags: int, set_: int, clear: int) -> None:
    number, attributes = ctypes.c_long(_SYS_MOUNT_SETATTR), struct.pack("=QQQQ", set_, clear, 0, 0)
    result = _libc.syscall(number, _AT_FDCWD, path.encode(), flags, attributes, ctypes.c_size_t(32))
    _call("mount_setattr (Linux 5.12)", result)


def _give_up(settings: dict[str, Any]) -> None:
    """Limits, then user and privileges: nothing that the code could take back."""
    for limit, value in (
        (resource.RLIMIT_AS, settings["memory_bytes"]),
        (resource.RLIMIT_FSIZE, _TMP_BYTES),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        # No limit is -1; a lower one than ours stays, which only root could raise.
        least = min(value, resource.getrlimit(limit)[1] % 2**64)
        resource.setrlimit(limit, (least, least))
    if settings["own_user"]:
        # Who may not take another, as in a namespace of users, keeps his, which nothing in the cage belongs to.
        with contextlib.suppress(OSError):
            user = _FIRST_USER + settings["number"] % _USERS
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
    if closed := [path for path in settings["visible"] if os.path.exists(path) and not os.access(path, os.R_OK)]:  # noqa: PTH110
        raise _NoIsolation(f"closed to the user that the code runs as: `chmod -R o+rX {closed[0]}` opens it")
    header, none = struct.pack("=II", 0x20080522, 0), bytes(24)
    _call("capset", _libc.syscall(_number(_SYS_CAPSET), header, none))
    _call("no_new_privs", _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    _forbid(bytes.fromhex(settings["filter"]))
    _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    # Cleared by the change of user.
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _forbid(program: bytes) -> None:
    """Install the seccomp filter, for good."""
    code = ctypes.create_string_buffer(program)
    # The kernel's sock_fprog: how many instructions of 8 bytes, and where.
    size, where = len(program) // 8, ctypes.addressof(code)
    _call("seccomp", _libc.prctl(_PR_SET_SECCOMP, 2, struct.pack("@HP", size, where), 0, 0))


def _serve(source: str) -> None:
    requests, replies, nothing = os.dup(0), os.dup(1), os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1):
        # What the code prints goes nowhere: a batch of it would fill a disk. Of stderr host.py keeps the end.
        os.dup2(nothing, descriptor)
    score = None
    try:
        names: dict[str, Any] = {"__name__": "reward"}
        exec(compile(source, "reward.py", "exec"), names)  # noqa: S102 - what all of this is for
        score = names.get("score")
        ready = {"ready": True} if callable(score) else {"error": "has no function score"}
    except BaseException as error:
        ready = {"error": _told(error)}
    _write(ready, replies)
    if not callable(score):
        os._exit(1)
    while (request := _read(requests)) is not None:
        _write(_answer(score, request["samples"]), replies)
    os._exit(0)


def _answer(score: Callable[[Any], Any], samples: list[Any]) -> dict[str, Any]:
    try:
        return {"scores": _plain(score(samples))}
    except BaseException as error:
        told = _told(error)
    # One by one, for the one that it is about.
    for index, sample in enumerate(samples):
        try:
            _plain(score([sample]))
        except BaseException as error:
            return {"error": _told(error), "index": index}
    return {"error": told}


def _plain(scores: Any) -> Any:
    """As JSON would have it: what offers `item` or `tolist`, as numpy's do, is a number or a list."""
    if hasattr(scores, "tolist"):
        scores = scores.tolist()
    json.dumps(scores, default=_number_of)
    return scores


def _number_of(value: Any) -> Any:
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"score returned a {type(value).__name__}, which is neither a number nor a dict")


def _told(error: BaseException) -> str:
    trace = reversed(traceback.extract_tb(error.__traceback__))
    line = next((frame.lineno for frame in trace if frame.filename == "reward.py"), None)
    if isinstance(error, SyntaxError):
        line = error.lineno
    where = f" (line {line})" if line else ""
    return f"{type(error).__name__}: {error}{where}"[:_TRACE_CHARACTERS]


def _read(descriptor: int = 0) -> Any:
    """The next frame; None at the end."""
    header = _exactly(descriptor, _HEADER.size)
    return json.loads(_exactly(descriptor, _HEADER.unpack(header)[0])) if header else None


def _exactly(descriptor: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        if not (part := os.read(descriptor, size - len(data))):
            return b""
        data += part
    return data


def _write(message: Any, descriptor: int = 1) -> None:
    data = json.dumps(message, default=_number_of).encode()
    view = memoryview(_HEADER.pack(len(data)) + data)
    while view:
        view = view[os.write(descriptor, view) :]


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    words = [None if word is None else word.encode() for word in (source, target, kind)]
    _call(f"mount {target}", _libc.mount(*words, ctypes.c_ulong(flags), options.encode() if options else None))


def _number(table: dict[str, int]) -> ctypes.c_long:
    if (machine := os.uname().machine) not in table:
        raise _NoIsolation(f"not known on {machine}")
    return ctypes.c_long(table[machine])


def _call(what: str, result: int) -> None:
    if result < 0:
        raise _NoIsolation(f"{what}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    main(int(sys.argv[1]))
