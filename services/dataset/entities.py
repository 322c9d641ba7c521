"""The nouns of this service, as they are stored: frozen, and knowing neither wire nor SQL."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from services.mesh import names
from services.mesh.jobs.store import State


@dataclass(frozen=True)
class Dataset:
    uid: UUID
    name: str
    parent: str
    display_name: str
    format: str
    labels: dict[str, str]
    # Number of the newest version, 0 before the first.
    version_count: int
    revision: int
    create_time: datetime
    update_time: datetime

    @property
    def latest_version(self) -> str:
        """Full name of the newest version; empty before the first."""
        return names.child(self.name, "versions", str(self.version_count)) if self.version_count else ""

    @property
    def etag(self) -> str:
        """Changes with every change. The uid is in it: a dataset made anew under the same name is another one."""
        return hashlib.sha256(f"{self.uid}:{self.revision}".encode()).hexdigest()[:16]


@dataclass(frozen=True)
class DatasetVersion:
    dataset_uid: UUID
    number: int
    name: str
    sha256: str
    format: str
    row_count: int
    # Of the canonical rows as JSON lines.
    size_bytes: int
    statistics: dict[str, Any]
    source_sha256: str
    source_file_name: str
    create_time: datetime


class UploadState(StrEnum):
    RECEIVING = "RECEIVING"
    VALIDATING = "VALIDATING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"


_STATES = {
    None: UploadState.RECEIVING,
    State.SUCCEEDED: UploadState.SUCCEEDED,
    State.FAILED: UploadState.FAILED,
    # Nobody can cancel a validation; should a job be cancelled by hand, the upload has come to nothing.
    State.CANCELLED: UploadState.FAILED,
}


@dataclass(frozen=True)
class Upload:
    """A file on its way. `job_…` are of the validation that its commit started, None before it."""

    uid: UUID
    name: str
    dataset_uid: UUID
    file_name: str
    size_bytes: int
    sha256: str
    # An UploadOptions as JSON.
    options: dict[str, Any]
    dataset_version: str
    split_dataset_version: str
    report: dict[str, Any] | None
    create_time: datetime
    expire_time: datetime
    job_state: State | None
    job_progress: dict[str, Any] | None
    job_error: dict[str, Any] | None
    # Read from the staging file, not from a column.
    received_bytes: int = 0

    @property
    def state(self) -> UploadState:
        state = State(self.job_state) if self.job_state else None
        return _STATES.get(state, UploadState.VALIDATING)

    @property
    def ended(self) -> bool:
        return self.state in (UploadState.SUCCEEDED, UploadState.FAILED)

    @property
    def validated_row_count(self) -> int:
        return (self.job_progress or {}).get("validated_row_count", 0)
