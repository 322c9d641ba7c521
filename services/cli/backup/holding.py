"""Files of a mesh that goes on, held by links: what it removes meanwhile is still there to be copied."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from services.mesh.errors import FailedPrecondition

FOLDER = "backing-up"


@dataclass(frozen=True)
class Held:
    """One file: what it is called, and where it can be read; up to `size_bytes`, as it may grow."""

    path: str
    source: Path
    size_bytes: int


@dataclass
class Holder:
    """`links` is the folder of the links; None takes the files where they are, which nobody removes then."""

    home: Path
    links: Path | None
    files: list[Held] = field(default_factory=list)

    def hold(self, *names: str) -> None:
        """Files and folders of the home, with everything below. One that is not there, or goes, is passed over."""
        for name in names:
            for path, size_bytes in _files(self.home / name, (self.home / name).stat):
                with contextlib.suppress(FileNotFoundError):
                    self.files.append(Held(str(path.relative_to(self.home)), self._link(path), size_bytes))

    def _link(self, path: Path) -> Path:
        if self.links is None:
            return path
        link = self.links / str(len(self.files))
        try:
            os.link(path, link, follow_symlinks=False)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.ENOTSUP):
                raise
            message = f"{path} cannot be linked to from {self.links}: run `rlhf down` first, then the backup, then up"
            raise FailedPrecondition("NO_LINKS", message, path=path) from error
        return link


@contextlib.contextmanager
def holder(home: Path, *, linked: bool) -> Iterator[Holder]:
    """Its links are gone after the block; those of a backup that was killed go when the next one begins."""
    links = home / FOLDER
    shutil.rmtree(links, ignore_errors=True)
    if linked:
        links.mkdir(mode=0o700)
    try:
        yield Holder(home, links if linked else None)
    finally:
        shutil.rmtree(links, ignore_errors=True)


def _files(root: Path, look: Callable[[], os.stat_result]) -> Iterator[tuple[Path, int]]:
    """Regular files only: what lies in a folder leads nowhere else."""
    try:
        status = look()
    except FileNotFoundError:
        return
    if stat.S_ISREG(status.st_mode):
        yield root, status.st_size
    elif stat.S_ISDIR(status.st_mode):
        try:
            below = sorted(root.iterdir())
        except FileNotFoundError:
            return
        for path in below:
            yield from _files(path, path.lstat)
