"""A user's code in a process that sees the interpreter and nothing else: see guest.py for what holds it.

The code gets no environment, no file of ours, no network, no process besides its own, so much memory, and so long for
an answer. It is somebody's who may start a training here, not somebody's who may read the mesh's token.
"""

from __future__ import annotations

import itertools
import json
import os
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from services.rewards import RewardError
from services.rewards.sandbox import seccomp

_SCRIPT = Path(__file__).with_name("guest.py")
_HEADER = struct.Struct(">I")
_LARGEST_REPLY_BYTES = 16 << 20
_START_SECONDS = 60.0
_POLL_SECONDS = 0.2
_SHOWN_CHARACTERS = 2_000
# Of what it has written to stderr: the end, which is where a traceback says what happened.
_KEPT_ERROR_BYTES = 4_000
_PIPE_BYTES = 1 << 16
# What an interpreter and the wheels in its environment need besides their own folders.
_SYSTEM = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache", "/usr/share/zoneinfo")
# One library thread: more are not allowed inside.
_ENVIRONMENT = {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    "LANG": "C.UTF-8",
    # The one folder that the code may write to: libraries look for a home to keep their caches in.
    "HOME": "/tmp",  # noqa: S108
}
_numbers = itertools.count(os.getpid())
_ISOLATION_REMEDY = (
    "run the trainer's worker where it may make namespaces (as root, or with user namespaces allowed), or set "
    "RLHF_TRAINER_CUSTOM_CODE=allow-unisolated where all who may create jobs may run anything as its user"
)


@dataclass(frozen=True)
class SandboxSettings:
    source: str
    isolated: bool
    memory_bytes: int
    # Of one batch, and of what the code does before it is asked, by the clock.
    timeout_seconds: float


class SandboxDied(Exception):
    """It ended without an answer."""


class SandboxTimeout(Exception):
    """No answer in time; it has been ended."""


class RewardSandbox:
    """One process with the user's code. Not for several threads."""

    def __init__(self, settings: SandboxSettings, check: Callable[[], None] = lambda: None) -> None:
        """`check` is called while it is waited for, and raises to end that.

        Raises RewardError where it can't be isolated, or the code can't be run.
        """
        self._settings = settings
        self._check = check
        self._inner = 0
        # The end of what it wrote to stderr.
        self._errors = b""
        watch, self._watched = os.pipe()
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter
                [sys.executable, "-I", "-B", str(_SCRIPT), str(watch)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=_ENVIRONMENT,
                cwd="/",
                pass_fds=[watch],
                start_new_session=True,
            )
        finally:
            os.close(watch)
        try:
            self._begin()
        except SandboxDied:
            message = f"its process died at the start ({self.died()})"
            self.close()
            raise RewardError(message) from None
        except BaseException:
            self.close()
            raise

    def _begin(self) -> None:
        settings = self._settings
        try:
            program = seccomp.program(os.uname().machine)
        except ValueError as error:
            raise _not_isolated(error) from None
        self._send(
            {
                "source": settings.source,
                "isolated": settings.isolated,
                "memory_bytes": settings.memory_bytes,
                "number": next(_numbers),
                # Outside the cage another user may not find the interpreter.
                "own_user": settings.isolated or all(map(_open_to_all, (sys.prefix, sys.base_prefix))),
                "visible": _visible(),
                "filter": program.hex(),
            }
        )
        self._enter()
        # From here on it may be the code that speaks: who is to be killed, and what holds it, is not for it to say.
        try:
            reply = self._receive(time.monotonic() + settings.timeout_seconds)
        except SandboxTimeout:
            raise RewardError(f"its code does not come to an end within {settings.timeout_seconds:g} s") from None
        if not reply.get("ready"):
            raise RewardError(f"its code does not run: {_shown(reply.get('error'))}")

    def _enter(self) -> None:
        """Wait until the process is isolated; none of the code has run then."""
        give_up = time.monotonic() + _START_SECONDS
        try:
            reply = self._receive(give_up)
            if "pid" in reply:
                self._inner = reply["pid"]
                reply = self._receive(give_up)
        except SandboxTimeout:
            raise RewardError(f"its process is not there after {_START_SECONDS:.0f} s") from None
        if "caged" not in reply:
            raise _not_isolated(reply.get("error"))

    def ask(self, samples: list[dict[str, Any]]) -> Any:
        """The code's answer to a batch. Raises SandboxTimeout, SandboxDied, and RewardError for what it raised."""
        give_up = time.monotonic() + self._settings.timeout_seconds
        self._send({"samples": samples})
        reply = self._receive(give_up)
        if "error" in reply:
            index = reply.get("index")
            known = isinstance(index, int) and 0 <= index < len(samples)
            raise RewardError(f"its code raised {_shown(reply['error'])}", index if known else None)
        return reply.get("scores")

    def _send(self, message: Any) -> None:
        assert self._process.stdin is not None
        data = msgspec.json.encode(message)
        try:
            self._process.stdin.write(_HEADER.pack(len(data)) + data)
            self._process.stdin.flush()
        except BrokenPipeError:
            # What it had to say before is in the other pipe.
            pass

    def _receive(self, give_up: float) -> dict[str, Any]:
        (size,) = _HEADER.unpack(self._exactly(_HEADER.size, give_up))
        if size > _LARGEST_REPLY_BYTES:
            raise RewardError(f"its code answered with {size} bytes")
        try:
            # The standard library's, which reads NaN: whoever looks at the scores can tell whose it is.
            reply = json.loads(self._exactly(size, give_up))
        except (ValueError, RecursionError) as error:
            raise RewardError(f"its code answered with no JSON: {error}") from None
        if not isinstance(reply, dict):
            raise RewardError("its code wrote into the pipe of the answers")
        return reply

    def _exactly(self, size: int, give_up: float) -> bytes:
        assert self._process.stdout is not None
        descriptor, data = self._process.stdout.fileno(), b""
        while len(data) < size:
            left = give_up - time.monotonic()
            if left <= 0:
                self.close()
                raise SandboxTimeout
            readable = self._readable(descriptor, min(left, _POLL_SECONDS))
            if not readable:
                self._check()
                continue
            part = os.read(descriptor, size - len(data))
            if not part:
                raise SandboxDied
            data += part
        return data

    def _readable(self, descriptor: int, seconds: float) -> bool:
        """Whether there is something to read within so long. Empties stderr meanwhile, whose pipe would fill."""
        errors = self._process.stderr
        assert errors is not None
        waiting = [descriptor] if errors.closed else [descriptor, errors.fileno()]
        found = select.select(waiting, [], [], seconds)[0]
        if descriptor not in found and found:
            self._keep_errors()
        return descriptor in found

    def _keep_errors(self) -> None:
        """Read once from stderr, where there is something or its end."""
        assert self._process.stderr is not None
        part = os.read(self._process.stderr.fileno(), _PIPE_BYTES)
        self._errors = (self._errors + part)[-_KEPT_ERROR_BYTES:]
        if not part:
            self._process.stderr.close()

    def _ending(self) -> str:
        """How it ended, in words."""
        try:
            status = self._process.wait(5)
        except subprocess.TimeoutExpired:
            return "it closed its pipe"
        if status > 128 or status < 0:
            number = status - 128 if status > 128 else -status
            with suppress(ValueError):
                return f"{signal.Signals(number).name}; a process that is killed has often taken too much memory"
        return f"exit status {status}"

    def died(self) -> str:
        """How it ended, and what it wrote to stderr before."""
        ending, errors = self._ending(), self._process.stderr
        assert errors is not None
        while not errors.closed and select.select([errors], [], [], 0)[0]:
            self._keep_errors()
        told = self._errors.decode(errors="replace").strip()[-_SHOWN_CHARACTERS:]
        return f"{ending}; stderr: {told}" if told else ending

    def close(self) -> None:
        """End it, and whatever it has started."""
        if self._watched < 0:
            return
        os.close(self._watched)
        self._watched = -1
        if self._process.poll() is None and self._inner:
            with suppress(ProcessLookupError):
                os.kill(self._inner, signal.SIGKILL)
        if not self._settings.isolated:
            # Without a namespace of its own it may have left some behind.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()


def _not_isolated(why: object) -> RewardError:
    message = f"its code can't be isolated on this machine: {why}"
    return RewardError(message, reason="REWARD_NOT_ISOLATED", remedy=_ISOLATION_REMEDY)


def _visible() -> list[str]:
    """Folders that the interpreter is in, outer ones before those inside them."""
    return sorted({os.path.realpath(sys.base_prefix), sys.base_prefix, sys.prefix, *_SYSTEM}, key=len)


def _open_to_all(path: str) -> bool:
    """Whether any user can get there."""
    return all(one.stat().st_mode & 0o001 for one in (Path(path), *Path(path).parents))


def _shown(error: Any) -> str:
    """The code can write into the pipe itself, whatever and however much it likes."""
    return str(error)[:_SHOWN_CHARACTERS]
