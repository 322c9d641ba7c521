"""A home is made of a backup: beside its place, and put there once all of it is right."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import services
from services.cli import output
from services.cli.backup import copying, database, document, whole
from services.cli.backup.document import Backup, SavedFile
from services.mesh.errors import DataLoss, FailedPrecondition
from services.supervisor.embedded.home import Home
from services.supervisor.group import locked

_STAGE = "restoring"


def restore(folder: Path, home: Home, tell: Callable[[str], None]) -> Backup:
    """Raises FailedPrecondition for a home that is not empty, or no whole backup; DataLoss for a damaged one."""
    whole.check()
    backup = document.read(folder)
    _check_version(folder, backup)
    _check_empty(home)
    existed = home.root.exists()
    for each in (home.root, home.run):
        copying.make_folders(each)
    home.root.chmod(0o700)
    with locked(home):
        try:
            _fill(folder, backup, home, tell)
        except BaseException:
            _empty(home, existed)
            raise
    return backup


def _check_version(folder: Path, backup: Backup) -> None:
    root = Path(services.__file__).parents[1]
    for migration in backup.migrations:
        package, _, name = migration.partition("/")
        if not (root / package.replace(".", "/") / "migrations" / name).exists():
            message = f"the backup in {folder} is of rlhf {backup.version}, which knows more than this one"
            raise FailedPrecondition("NEWER_BACKUP", f"{message} ({migration}): install that version, or a newer one")


def _check_empty(home: Home) -> None:
    """A restore that was killed counts as none."""
    try:
        found = {*home.root.iterdir()} - {home.root / _STAGE}
        if home.run in found and {*home.run.iterdir()} <= {home.lock}:
            found -= {home.run}
    except FileNotFoundError:
        return
    if found:
        message = (
            f"{home.root} is not empty (there is {min(found).name}): move it away, or name another folder with --home"
        )
        raise FailedPrecondition("HOME_NOT_EMPTY", message, home=home.root)


def _fill(folder: Path, backup: Backup, home: Home, tell: Callable[[str], None]) -> None:
    stage = home.root / _STAGE
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir(mode=0o700)
    with output.messages().status("copying") as spinner:
        for number, (each, source, target) in enumerate(_places(folder, backup, stage), 1):
            spinner.update(f"copying {number} of {backup.file_count} files")
            _copy(each, source, target)
    tell(f"  files              {backup.file_count}, each with its SHA-256")
    with database.started(stage / home.postgres.name, home) as url:
        database.load(url, stage / document.DUMP)
        offsets = database.move(url, backup.home, str(home.root))
    tell("  database           restored")
    # What a run has said after the database was saved names files that were not: it is told again by the next attempt.
    for path, offset in offsets.items():
        if (spool := stage / path).exists() and spool.stat().st_size > offset:
            os.truncate(spool, offset)
    (stage / document.DUMP).unlink()
    os.sync()
    for path in sorted(stage.iterdir()):
        path.rename(home.root / path.name)
    stage.rmdir()


def _places(folder: Path, backup: Backup, stage: Path) -> list[tuple[SavedFile, Path, Path]]:
    """Each file with where it is and where it goes."""
    blobs = [(blob, path := document.blob_path(blob.sha256)) for blob in backup.blobs]
    found = [(blob, folder / path, stage / path) for blob, path in blobs]
    for file in backup.files:
        path = f"artifacts/{file.path}" if file.path == document.REFERENCES else file.path
        found.append((file, folder / backup.state / file.path, stage / path))
    return found


def _copy(each: SavedFile, source: Path, target: Path) -> None:
    try:
        copying.copy(source, target, each.size_bytes, each.sha256)
    except FileNotFoundError as error:
        raise DataLoss("CORRUPT_BACKUP", f"{source} is missing: take another backup", path=source) from error
    except DataLoss as error:
        raise DataLoss("CORRUPT_BACKUP", f"{error.message}; take another backup", path=source) from None


def _empty(home: Home, existed: bool) -> None:
    for path in home.root.iterdir():
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    if not existed:
        home.root.rmdir()
