"""The folder that holds everything of one mesh, closed to others."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from services.mesh import addresses, identity
from services.mesh.errors import FailedPrecondition


@dataclass(frozen=True)
class Home:
    """`root` is absolute. What lies where, and nothing else."""

    root: Path

    @property
    def token(self) -> Path:
        return self.root / "token"

    @property
    def certificate(self) -> Path:
        """Of the gateway's ports, with its key, where they speak TLS with a certificate of the home."""
        return self.root / "tls.pem"

    @property
    def run(self) -> Path:
        """What belongs to one run of the mesh: state, endpoints, logs."""
        return self.root / "run"

    @property
    def logs(self) -> Path:
        return self.run / "logs"

    @property
    def endpoints(self) -> Path:
        return self.run / "endpoints.json"

    @property
    def state(self) -> Path:
        return self.run / "state.json"

    @property
    def lock(self) -> Path:
        return self.run / "lock"

    @property
    def ports(self) -> Path:
        return self.run / "ports.json"

    @property
    def postgres(self) -> Path:
        return self.root / "postgres"

    @property
    def nats(self) -> Path:
        return self.root / "nats"

    @property
    def ray(self) -> Path:
        return self.root / "ray"

    @property
    def temporary(self) -> Path:
        """What processes keep while they run, sockets for example; gone once the mesh is down."""
        return short_folder(self.root, "home")

    def socket(self, service: str) -> str:
        """The address of a service, `unix:/path`."""
        return f"{addresses.PREFIX}{self.temporary / service}.sock"

    @property
    def ray_temporary(self) -> Path:
        return short_folder(self.ray, "ray")

    def remove_temporary(self) -> None:
        """Once no process of the mesh is left."""
        for folder in (self.temporary, self.ray_temporary):
            shutil.rmtree(folder, ignore_errors=True)

    def log(self, process: str) -> Path:
        return self.logs / f"{process}.log"

    def make(self) -> None:
        """Make the folders and the token; close the home to others, whatever it was."""
        for folder in (self.root, self.run, self.logs):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.root.chmod(0o700)
        identity.ensure_token(self.token)


def short_folder(folder: Path, kind: str) -> Path:
    """A folder in /tmp that belongs to `folder`: a Unix socket's path may have 107 bytes, and no home promises to be
    short. Not made yet; see `make_private`.
    """
    digest = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:12]
    return Path("/tmp") / f"rlhf-{kind}-{digest}"  # noqa: S108 - made 0700 and ours by `make_private`


def make_private(folder: Path) -> None:
    """Make a folder in a place where others may write, or prove that it is ours alone. Raises FailedPrecondition."""
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        message = f"{folder} belongs to somebody else or is open to others; remove it"
        raise FailedPrecondition("FOLDER_NOT_OURS", message, path=folder)


def secret(path: Path) -> str:
    """The random word in `path`; made, with its 0700 folder, when it is not there."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return identity.ensure_token(path)


def write_private(path: Path, text: str) -> None:
    """Replace `path` at once: a reader sees the old text or the new. Only the owner may read it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    temporary.replace(path)
