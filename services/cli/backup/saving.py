"""A backup is made: the database as of one moment, and every file that it speaks of at that moment.

What is saved before it stays whole until `backup.json` names the new one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import psycopg

from services.cli import display, output
from services.cli.backup import copying, database, document, whole
from services.cli.backup.document import Backup, SavedFile
from services.cli.backup.holding import Held, Holder, holder
from services.mesh.artifacts.store import hash_file
from services.mesh.errors import DataLoss, FailedPrecondition, Unavailable
from services.supervisor import settings, state
from services.supervisor.embedded.home import Home
from services.supervisor.group import locked
from services.supervisor.state import Phase

Tell = Callable[[str], None]

# Nothing that writes waits longer for our lock, should we have to wait for somebody else's.
_LOCK_TIMEOUT = "20s"
_OURS = re.compile(rf"{re.escape(document.FILE)}|artifacts|state-.*|\..*")
_BLOB = re.compile(r"artifacts/[0-9a-f]{2}/([0-9a-f]{64})")
_NOTE = f"artifacts/{document.REFERENCES}"


@dataclass
class Saved:
    folder: Path
    backup: Backup
    copied_bytes: int = 0
    # Blobs whose bytes are not those that the store promises.
    corrupt: list[str] = field(default_factory=list)


def save(home: Home, folder: Path, tell: Tell) -> Saved:
    """Raises FailedPrecondition for a home or a folder that cannot be meant, Unavailable without the database."""
    if not (home.postgres / "data").exists():
        message = f"there is nothing to save in {home.root}: no mesh was ever up there; RLHF_HOME names another home"
        raise FailedPrecondition("NOTHING_TO_SAVE", message, home=home.root)
    is_up = _is_up(home)
    whole.check(settings.running(home) if is_up else None)
    _prepare(home, folder)
    try:
        with _alone(home), _database(home, is_up) as url, holder(home.root, linked=is_up) as held:
            return _save(home, folder, url, held, tell)
    except psycopg.OperationalError as error:
        message = f"the database could not be read, and nothing has changed in {folder}; try again: {error}"
        raise Unavailable("DATABASE_UNAVAILABLE", message) from error


def _is_up(home: Home) -> bool:
    known = state.read(home.state)
    if known is None or not known.alive():
        return False
    if known.phase is not Phase.READY:
        message = f"the mesh is {known.phase}: wait until `rlhf status` says that it is up, or down"
        raise FailedPrecondition("MESH_NOT_READY", message)
    return True


def _prepare(home: Home, folder: Path) -> None:
    """Make the folder and close it to others. Raises FailedPrecondition where it holds anything but a backup."""
    if folder.is_relative_to(home.root) or home.root.is_relative_to(folder):
        message = f"{folder} and the home {home.root} would be lost together: choose a folder on another disk"
        raise FailedPrecondition("FOLDER_OF_THE_HOME", message, folder=folder)
    copying.make_folders(folder)
    if other := sorted(path.name for path in folder.iterdir() if not _OURS.fullmatch(path.name)):
        message = f"{folder} holds something else than a backup, such as {other[0]}: choose a new or an empty folder"
        raise FailedPrecondition("FOLDER_IN_USE", message, folder=folder)
    if folder.stat().st_uid != os.geteuid():
        message = f"{folder} belongs to somebody else, who could read the secrets in it: choose a folder of yours"
        raise FailedPrecondition("FOLDER_NOT_OURS", message, folder=folder)
    folder.chmod(0o700)


@contextlib.contextmanager
def _alone(home: Home) -> Iterator[None]:
    descriptor = os.open(home.run / "backup.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        message = f"another backup of {home.root} is being made: wait for it"
        raise FailedPrecondition("BACKUP_RUNS", message) from None
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _database(home: Home, is_up: bool) -> Iterator[str]:
    if is_up:
        yield database.url_of_running(home)
        return
    with locked(home), database.started(home.postgres, home) as url:
        yield url


def _save(home: Home, folder: Path, url: str, held: Holder, tell: Tell) -> Saved:
    with psycopg.connect(url) as reading:
        reading.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        snapshot, time = _hold(url, reading, held)
        name = f"state-{time}-{secrets.token_hex(4)}"
        copying.make_folders(folder / name)
        dump = folder / name / document.DUMP
        database.dump(url, snapshot, dump)
        applied = database.migrations(reading)
    size = dump.stat().st_size
    tell(f"  database           {display.size(size)}")
    kept = SavedFile(document.DUMP, size, hash_file(dump))
    backup = Backup(document.FORMAT, version("rlhf-mesh"), time, str(home.root), name, applied, [kept], [])
    saved = Saved(folder, backup, copied_bytes=size)
    with output.messages().status("copying") as spinner:
        for number, each in enumerate(held.files, 1):
            spinner.update(f"copying {number} of {len(held.files)} files, {display.size(saved.copied_bytes)} so far")
            _take(each, saved)
    tell(f"  artifacts          {len(backup.blobs)} blobs")
    tell(f"  other files        {len(backup.files) - 1}")
    # Before it is said that all of it is there.
    os.sync()
    document.write(folder, backup)
    _remove_old(folder, backup)
    return saved


def _hold(url: str, reading: psycopg.Connection, held: Holder) -> tuple[str, str]:
    """The name of a snapshot of the database, and its time; the files that it speaks of are held."""
    with psycopg.connect(url) as locking:
        locking.execute("SELECT set_config('lock_timeout', %s, true)", (_LOCK_TIMEOUT,))
        database.lock_blobs(locking)
        database.lock_files(locking)
        query = "SELECT pg_export_snapshot(), to_char(now() AT TIME ZONE 'UTC', 'YYYYMMDD\"T\"HH24MISS\"Z\"')"
        row = reading.execute(query).fetchone()
        assert row is not None
        held.hold(*document.FOLDERS, document.TOKEN, _NOTE, *(f"artifacts/{number:02x}" for number in range(256)))
    return row[0], row[1]


def _take(each: Held, saved: Saved) -> None:
    if (blob := _BLOB.fullmatch(each.path)) is None:
        if each.path.startswith("artifacts/") and each.path != _NOTE:
            return
        path = document.REFERENCES if each.path == _NOTE else each.path
        copied = copying.copy(each.source, saved.folder / saved.backup.state / path, each.size_bytes)
        saved.backup.files.append(SavedFile(path, copied.size_bytes, copied.sha256))
        saved.copied_bytes += copied.size_bytes
        return
    target = saved.folder / document.blob_path(blob[1])
    if not (target.is_file() and target.stat().st_size == each.size_bytes):
        try:
            copying.copy(each.source, target, each.size_bytes, blob[1])
        except DataLoss:
            saved.corrupt.append(blob[1])
            return
        saved.copied_bytes += each.size_bytes
    saved.backup.blobs.append(SavedFile("", each.size_bytes, blob[1]))


def _remove_old(folder: Path, backup: Backup) -> None:
    """What the backup no longer names: earlier ones, and what broken ones have left."""
    for path in folder.glob("state-*"):
        if path.name != backup.state:
            shutil.rmtree(path)
    known = {blob.sha256 for blob in backup.blobs}
    for path in (folder / "artifacts").glob("*/*"):
        if path.name not in known:
            path.unlink()
