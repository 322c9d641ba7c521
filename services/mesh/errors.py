"""The platform's errors. Domain code raises these; only `rpc/interceptors.py` knows that they become gRPC statuses.

`reason` is a stable UPPER_SNAKE_CASE word that clients may branch on, `message` is for people, and `metadata`
holds the values that the message mentions, so that nobody has to parse prose.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

# What an OSError's errno is where a file cannot grow: no space, no quota left, or a limit on its size.
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@dataclass(frozen=True)
class Violation:
    """One thing that is wrong with one field of a request.

    `field` is the path a caller wrote, such as `training_job.params.learning_rate`, empty for the whole request;
    `description` says what is wrong and what would be right.
    """

    field: str
    description: str

    def __str__(self) -> str:
        return f"{self.field}: {self.description}" if self.field else self.description

    def under(self, prefix: str) -> Violation:
        """The same violation, seen from one message further out."""
        return Violation(f"{prefix}.{self.field}" if self.field else prefix, self.description)


class PlatformError(Exception):
    """Base class. `code` is the canonical google.rpc.Code name."""

    code: ClassVar[str] = "INTERNAL"

    def __init__(self, reason: str, message: str, **metadata: object) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.metadata = {key: str(value) for key, value in metadata.items()}


class InvalidArgument(PlatformError):
    """The request is wrong whatever the state of the system. Carries every violation, not the first."""

    code = "INVALID_ARGUMENT"

    def __init__(self, violations: Iterable[Violation], reason: str = "INVALID_FIELDS") -> None:
        self.violations = tuple(violations)
        super().__init__(reason, "; ".join(str(violation) for violation in self.violations))

    @classmethod
    def of(cls, field: str, description: str) -> InvalidArgument:
        return cls([Violation(field, description)])


class NotFound(PlatformError):
    code = "NOT_FOUND"


class AlreadyExists(PlatformError):
    code = "ALREADY_EXISTS"


class FailedPrecondition(PlatformError):
    """The request is right but the resource is in the wrong state."""

    code = "FAILED_PRECONDITION"


class Aborted(PlatformError):
    """Somebody else was faster: a lost lease, an upload written by two at once. Read again, then retry."""

    code = "ABORTED"


class OutOfRange(PlatformError):
    """An offset beyond what there is."""

    code = "OUT_OF_RANGE"


class ResourceExhausted(PlatformError):
    """A limit on size, count or disk was met."""

    code = "RESOURCE_EXHAUSTED"


class Unauthenticated(PlatformError):
    code = "UNAUTHENTICATED"


class PermissionDenied(PlatformError):
    code = "PERMISSION_DENIED"


class Unavailable(PlatformError):
    """A dependency is down; the caller may retry."""

    code = "UNAVAILABLE"


class DeadlineExceeded(PlatformError):
    code = "DEADLINE_EXCEEDED"


class Cancelled(PlatformError):
    code = "CANCELLED"


class DataLoss(PlatformError):
    """Stored bytes no longer match their hash."""

    code = "DATA_LOSS"


class Unimplemented(PlatformError):
    """The server does not know the method: an older or another service answered."""

    code = "UNIMPLEMENTED"


BY_CODE: dict[str, type[PlatformError]] = {
    error.code: error
    for error in (
        NotFound,
        AlreadyExists,
        FailedPrecondition,
        Aborted,
        OutOfRange,
        ResourceExhausted,
        Unauthenticated,
        PermissionDenied,
        Unavailable,
        DeadlineExceeded,
        Cancelled,
        DataLoss,
        Unimplemented,
    )
}
