"""What `rlhf doctor` looks at: each check says what it found and, where that is wrong, how to mend it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import pwd
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from services.cli import display
from services.mesh.errors import InvalidArgument
from services.mesh.settings import Environment
from services.supervisor import settings, state
from services.supervisor.embedded import users
from services.supervisor.embedded.home import Home
from services.supervisor.embedded.nats_server import binary as nats_binary
from services.supervisor.embedded.ports import is_free
from services.supervisor.embedded.postgres_server import binaries
from services.supervisor.embedded.process import StartFailed

Level = Literal["ok", "warn", "fail"]
_DISTRIBUTION = "rlhf-mesh"
_GB = 10**9
_BINARY_SECONDS = 30


@dataclass(frozen=True)
class Finding:
    check: str
    level: Level
    message: str
    # How to mend it; empty when there is nothing to mend.
    remedy: str = ""


def examine(home: Home, values: Mapping[str, str]) -> Iterator[Finding]:
    """Every finding, in the order in which things are needed. `values` is the environment."""
    yield check_platform(platform.system(), sys.version_info[:2])
    yield from check_packages("cpu")
    yield check_cores(len(os.sched_getaffinity(0)))
    yield check_memory(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    yield check_disk(home.root)
    yield check_shared_memory(Path("/dev/shm"))  # noqa: S108 - asks its size
    yield check_open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    yield check_clock(time.time(), Path(__file__).stat().st_mtime)
    yield check_home(home.root)
    yield from check_settings(home, values)
    yield from check_ports(home, Environment(values))
    yield check_user(os.geteuid())
    yield check_binary("postgres", lambda: [str(binaries() / "postgres"), "--version"])
    yield check_binary("nats", lambda: [str(nats_binary()), "--version"])
    yield check_binary("ray", lambda: [sys.executable, "-P", "-m", "ray.scripts.scripts", "--version"])
    yield check_confinement([sys.executable, "-P", "-m", "services.mesh.processes.confinement"])
    yield check_gpu()


def check_platform(system: str, version: Sequence[int]) -> Finding:
    text = f"{system}, Python {version[0]}.{version[1]}"
    if system != "Linux":
        return Finding("platform", "fail", text, "`rlhf up` needs Linux; on another system run it in a container")
    if tuple(version) != (3, 11):
        return Finding("platform", "fail", text, "make the environment with Python 3.11: the pins were tested with it")
    return Finding("platform", "ok", text)


def check_packages(extra: str) -> Iterator[Finding]:
    """Installed versions against the pins, by metadata: nothing is imported, torch least of all."""
    try:
        lines = importlib.metadata.requires(_DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding("packages", "fail", f"{_DISTRIBUTION} is not installed", f"run `pip install -e '.[{extra}]'`")
        return
    requirements = [Requirement(line) for line in lines]
    wanted = [each for each in requirements if each.marker is None or each.marker.evaluate({"extra": extra})]
    wrong = [problem for each in wanted if (problem := _problem(each))]
    if wrong:
        yield Finding("packages", "fail", "; ".join(wrong), f"run `pip install -e '.[{extra}]'`")
    else:
        yield Finding("packages", "ok", f"{len(wanted)} packages as pinned")


def _problem(wanted: Requirement) -> str:
    try:
        version = importlib.metadata.version(wanted.name)
    except importlib.metadata.PackageNotFoundError:
        return f"{wanted.name} is missing"
    return (
        ""
        if wanted.specifier.contains(version, prereleases=True)
        else f"{wanted.name} is {version}, not {wanted.specifier}"
    )


def check_cores(cores: int) -> Finding:
    if cores < 2:
        return Finding(
            "cpu", "warn", f"{cores} core", "with less than 2 cores training and services slow each other down"
        )
    return Finding("cpu", "ok", f"{cores} cores")


def check_memory(size_bytes: int) -> Finding:
    text = display.size(size_bytes)
    if size_bytes < 4 * _GB:
        return Finding("memory", "fail", text, "a training needs some 4 GB; take a machine with 8 GB or more")
    if size_bytes < 7 * _GB:
        return Finding("memory", "warn", text, "enough for one small training; 8 GB are better")
    return Finding("memory", "ok", text)


def check_disk(home: Path) -> Finding:
    existing = next(folder for folder in (home, *home.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    text = f"{display.size(free)} free for {home}"
    if free < 2 * _GB:
        return Finding("disk", "fail", text, "free some space, or set RLHF_HOME to a folder on a larger disk")
    if free < 10 * _GB:
        return Finding("disk", "warn", text, "checkpoints fill it soon: set RLHF_HOME to a folder on a larger disk")
    return Finding("disk", "ok", text)


def check_shared_memory(folder: Path) -> Finding:
    if not folder.is_dir():
        return Finding("shared memory", "warn", f"no {folder}", "Ray falls back to /tmp, which is slower")
    free = shutil.disk_usage(folder).free
    if free < _GB:
        remedy = "in a container start it with `--shm-size=2g`; Ray falls back to /tmp otherwise, which is slower"
        return Finding("shared memory", "warn", f"{display.size(free)} free in {folder}", remedy)
    return Finding("shared memory", "ok", f"{display.size(free)} free in {folder}")


def check_open_files(limit: int) -> Finding:
    remedy = "raise it: `ulimit -n 65536`, or LimitNOFILE of the systemd unit"
    if 0 <= limit < 1024:
        return Finding("open files", "fail", f"limit {limit}", remedy)
    if 0 <= limit < 4096:
        return Finding("open files", "warn", f"limit {limit}", remedy)
    return Finding("open files", "ok", f"limit {limit if limit >= 0 else 'none'}")


def check_clock(now: float, written: float) -> Finding:
    """`written` is when a file of ours was made: a clock before that is wrong. A day's grace for time zones."""
    text = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if now < written - 86_400:
        return Finding("clock", "fail", f"{text} is before this program was written", "set the clock, best by NTP")
    return Finding("clock", "ok", text)


def check_home(root: Path) -> Finding:
    if not root.exists():
        parent = next(folder for folder in root.parents if folder.exists())
        if os.access(parent, os.W_OK | os.X_OK):
            return Finding("home", "ok", f"{root} will be made")
        return Finding(
            "home", "fail", f"{root} cannot be made", f"give yourself write access to {parent} or set RLHF_HOME"
        )
    status = root.stat()
    if status.st_uid != os.geteuid():
        owner = _user_name(status.st_uid)
        return Finding(
            "home", "fail", f"{root} belongs to {owner}", "run as that user, or set RLHF_HOME to another folder"
        )
    if not os.access(root, os.W_OK | os.X_OK):
        return Finding("home", "fail", f"{root} cannot be written", f"run `chmod u+rwx {root}`")
    if status.st_mode & 0o077:
        remedy = f"run `chmod 700 {root}`: it holds the token; `rlhf up` does it too"
        return Finding("home", "warn", f"{root} is open to others", remedy)
    return Finding("home", "ok", f"{root}")


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def check_settings(home: Home, values: Mapping[str, str]) -> Iterator[Finding]:
    """As `rlhf up` reads them, and as the mesh that runs has them."""
    try:
        given = settings.check(values)
    except InvalidArgument as error:
        for violation in error.violations:
            yield Finding("settings", "fail", f"{violation.field} {violation.description}", "change it, or unset it")
        return
    for note in given.notes:
        yield Finding("settings", "warn", note)
    known = state.read(home.state)
    different = given.differences(settings.running(home)) if known is not None and known.alive() else []
    for each in different:
        text = f"{each.name} is {each.asked or 'not set'} here, the mesh runs with {each.running or 'none'}"
        yield Finding("settings", "warn", text, "`rlhf down && rlhf up` applies what is set here")
    if not given.notes and not different:
        yield Finding("settings", "ok", f"{len(given.settings)} set")


def check_ports(home: Home, environment: Environment) -> Iterator[Finding]:
    """That 127.0.0.1 can be listened on, and that the ports asked for are free unless this mesh has them."""
    try:
        with socket.create_server(("127.0.0.1", 0)):
            pass
    except OSError as error:
        yield Finding(
            "ports", "fail", f"cannot listen on 127.0.0.1: {error.strerror}", "bring the loopback interface up"
        )
        return
    known = state.read(home.state)
    taken = []
    for name in ("RLHF_GATEWAY_HTTP_LISTEN", "RLHF_GATEWAY_GRPC_LISTEN"):
        host, _, port = environment.address(name, "").rpartition(":")
        if port.isdecimal() and int(port) and not (known and known.alive()) and not is_free(int(port), host):
            taken.append(f"{name}={host}:{port}")
    if taken:
        yield Finding(
            "ports", "fail", f"taken: {', '.join(taken)}", "stop what listens there, or unset it for a free port"
        )
    else:
        yield Finding("ports", "ok", "127.0.0.1 can be listened on")


def check_user(uid: int) -> Finding:
    if uid != 0:
        return Finding("user", "ok", _user_name(uid))
    try:
        programs = binaries()
    except StartFailed as error:
        return Finding("user", "fail", f"root, without a PostgreSQL: {error.message}", "see postgres")
    if not users.is_open(programs):
        text = f"root; PostgreSQL runs as a user of its own that may read every file, since {programs} is closed to it"
        return Finding("user", "warn", text, "install the environment where everybody may read it, not below /root")
    return Finding("user", "ok", "root; PostgreSQL runs as a user of its own")


def check_binary(name: str, command: Callable[[], list[str]]) -> Finding:
    """Whether the program runs at all: a wheel for another C library or processor installs and then does not."""
    remedy = "install the project again: `pip install --force-reinstall -e .`"
    try:
        done = subprocess.run(command(), capture_output=True, text=True, timeout=_BINARY_SECONDS)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired, StartFailed) as error:
        return Finding(name, "fail", str(error), remedy)
    if done.returncode != 0:
        return Finding(name, "fail", (done.stderr or done.stdout).strip()[-300:], remedy)
    return Finding(name, "ok", done.stdout.strip().splitlines()[-1] if done.stdout.strip() else "runs")


def check_confinement(command: Sequence[str]) -> Finding:
    """Whether what strangers made can be read without sight of the rest of the machine."""
    remedy = (
        "models and uploads of strangers are read under limits alone: run it as root, allow user namespaces, or in a"
        " container give it CAP_SYS_ADMIN"
    )
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_BINARY_SECONDS)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("confinement", "warn", str(error), remedy)
    if done.returncode != 0:
        return Finding("confinement", "warn", f"no namespaces: {(done.stdout or done.stderr).strip()[-300:]}", remedy)
    return Finding("confinement", "ok", "namespaces for what reads strangers' models and files")


def check_gpu() -> Finding:
    if (program := shutil.which("nvidia-smi")) is None:
        if list(Path("/dev").glob("nvidia[0-9]*")):
            return Finding("gpu", "warn", "a GPU without nvidia-smi", "install the driver's tools (nvidia-utils)")
        return Finding("gpu", "ok", "none: training runs on the CPU")
    done = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=_BINARY_SECONDS, check=False)  # noqa: S603
    lines = [line.partition(" (UUID")[0] for line in done.stdout.splitlines() if line.startswith("GPU ")]
    if done.returncode != 0 or not lines:
        return Finding(
            "gpu", "warn", (done.stderr or done.stdout).strip()[-300:], "mend the driver, or train on the CPU"
        )
    if importlib.metadata.version("torch").endswith("+cpu"):
        return Finding("gpu", "warn", f"{'; '.join(lines)}, but torch is a CPU build", "install a CUDA build of torch")
    return Finding("gpu", "ok", "; ".join(lines))
