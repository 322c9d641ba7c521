"""`backup.json`: what a backup consists of. It is written last, so that one which broke off is known as such."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from services.mesh.artifacts.store import check_relative_path, check_sha256
from services.mesh.errors import DataLoss, FailedPrecondition, InvalidArgument
from services.supervisor.embedded.home import write_private

FILE = "backup.json"
FORMAT = 1
# Of the state: whatever is not a blob.
DUMP = "database.dump"
REFERENCES = "references"
TOKEN = "token"  # noqa: S105 - the name of a file
# Of a home: what is saved besides the blobs.
FOLDERS = ("secrets", "uploads", "trainer/jobs")
_STATE = re.compile(r"state-[0-9TZ]{16}-[0-9a-f]{8}")
_MIGRATION = re.compile(r"services(\.[a-z_]+)+/[0-9a-z_]+\.sql")


class SavedFile(msgspec.Struct, frozen=True, array_like=True):
    """`path` is relative to the folder of the state; of a blob, which lies by its hash, it is empty."""

    path: str
    size_bytes: int
    sha256: str


class Backup(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    # Of who made it.
    version: str
    # When the database was seen as it was saved, in UTC.
    time: str
    # Where it was: paths in the database begin with it.
    home: str
    # The folder with everything but the blobs.
    state: str
    migrations: list[str]
    files: list[SavedFile]
    blobs: list[SavedFile]

    @property
    def file_count(self) -> int:
        return len(self.files) + len(self.blobs)

    @property
    def size_bytes(self) -> int:
        return sum(each.size_bytes for each in (*self.files, *self.blobs))


def blob_path(sha256: str) -> str:
    """Where a blob lies, in a store and in a backup alike."""
    return f"artifacts/{sha256[:2]}/{sha256}"


def write(folder: Path, backup: Backup) -> None:
    write_private(folder / FILE, msgspec.json.encode(backup).decode())


def read(folder: Path) -> Backup:
    """Raises FailedPrecondition where there is no backup, or one of another version, DataLoss where it is not whole."""
    try:
        data = (folder / FILE).read_bytes()
    except OSError:
        message = f"{folder} holds no whole backup: there is no {FILE}, which is written at the end; choose another"
        raise FailedPrecondition("NO_BACKUP", message, folder=folder) from None
    try:
        if (known := msgspec.json.decode(data)["format"]) != FORMAT:
            message = f"the backup in {folder} has format {known!r} and this version reads {FORMAT}: use the version"
            raise FailedPrecondition("OTHER_BACKUP", f"{message} that made it", folder=folder)
        backup = msgspec.json.decode(data, type=Backup)
        _check(backup)
    except (msgspec.MsgspecError, InvalidArgument, KeyError, TypeError, UnicodeDecodeError) as error:
        message = f"{folder / FILE} is damaged: {error}; take another backup"
        raise DataLoss("CORRUPT_BACKUP", message, folder=folder) from None
    return backup


def _check(backup: Backup) -> None:
    if not _STATE.fullmatch(backup.state):
        raise InvalidArgument.of("state", f"is no name of a folder of states (got {backup.state[:80]!r})")
    for migration in backup.migrations:
        if not _MIGRATION.fullmatch(migration):
            raise InvalidArgument.of("migrations", f"are named package/file.sql (got {migration[:80]!r})")
    for file in backup.files:
        check_relative_path(file.path)
        if file.path not in (DUMP, REFERENCES, TOKEN) and not file.path.startswith(tuple(f"{it}/" for it in FOLDERS)):
            raise InvalidArgument.of("files", f"{file.path[:200]!r} is nothing that is saved")
    for file in (*backup.files, *backup.blobs):
        check_sha256(file.sha256)
    if not {DUMP, TOKEN} <= {file.path for file in backup.files}:
        raise InvalidArgument.of("files", f"must have {DUMP} and {TOKEN}")
