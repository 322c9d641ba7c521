"""Copying a folder that is not ours, whose owner may change it meanwhile, into one that is."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from services.models.folder import UnusableModelError, shown

_PART_BYTES = 1 << 20


def copy_folder(source: Path, roots: tuple[Path, ...], target: Path) -> None:
    """Copy the plain files of `source`, but what belongs to a tool (`.git`, `.cache`), to `target`, a new folder.

    No link is followed and nothing that is no file is waited for. Raises UnusableModelError where there is one, and
    where `source` no longer lies in one of `roots`.
    """
    descriptor = os.open(source, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # Of what was opened, whatever the path leads to by now.
        opened = Path(f"/proc/self/fd/{descriptor}").readlink()
        if not any(opened.is_relative_to(root.resolve()) for root in roots):
            raise UnusableModelError(f"{source} no longer lies in a folder that models may be imported from")
        for top, folders, files, inside in os.fwalk(dir_fd=descriptor):
            folders[:] = [name for name in folders if not name.startswith(".")]
            (target / top).mkdir(exist_ok=True)
            for name in files:
                if not name.startswith("."):
                    _copy(name, inside, target / top / name)
    finally:
        os.close(descriptor)


def _copy(name: str, inside: int, target: Path) -> None:
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY, dir_fd=inside)
    except FileNotFoundError:
        raise UnusableModelError(f"{shown(name)} went while the folder was copied") from None
    except OSError as error:
        raise UnusableModelError(f"{shown(name)} cannot be read: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file, target.open("xb") as copy:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise UnusableModelError(f"{shown(name)} is no plain file any more")
        shutil.copyfileobj(file, copy, _PART_BYTES)
