"""What a caller announces, and everything that can be wrong with it before a byte has come."""

from __future__ import annotations

import re
from dataclasses import dataclass

from services.dataset.reading.file_names import by_name
from services.dataset.reading.findings import UnreadableFile
from services.dataset.uploads.options import UploadOptions
from services.dataset.uploads.options_checks import check_options
from services.mesh.errors import Violation

MAX_FILE_NAME_BYTES = 255
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class NewUpload:
    """A file by its name, size and hash, and how its rows are to be read."""

    parent: str
    file_name: str
    size_bytes: int
    sha256: str
    options: UploadOptions

    def check(self, max_bytes: int) -> list[Violation]:
        """Everything that is wrong with it, apart from what only its dataset can tell."""
        found = _check_file_name(self.file_name)
        if not 0 < self.size_bytes <= max_bytes:
            found.append(Violation("upload.size_bytes", f"must be from 1 to {max_bytes} (got {self.size_bytes})"))
        if not _SHA256.fullmatch(self.sha256):
            found.append(Violation("upload.sha256", f"must be 64 lower-case hex digits (got {self.sha256[:80]!r})"))
        return [*found, *check_options(self.options, self.parent)]


def _check_file_name(name: str) -> list[Violation]:
    """A bare name: it is shown, logged and offered for download, and never made a path of."""
    field = "upload.file_name"
    if not name or len(name.encode()) > MAX_FILE_NAME_BYTES:
        return [Violation(field, f"must be 1 to {MAX_FILE_NAME_BYTES} bytes long")]
    if "/" in name or "\\" in name or name.startswith(".") or not name.isprintable():
        return [Violation(field, f"must be a bare name, printable and without a leading dot (got {name[:120]!r})")]
    try:
        by_name(name)
    except UnreadableFile as error:
        return [Violation(field, str(error))]
    return []
