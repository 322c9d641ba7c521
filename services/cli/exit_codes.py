"""Exit codes, so that a script can tell a failed job from a mesh that is down."""

from __future__ import annotations

from services.mesh.errors import PlatformError

OK = 0
FAILED = 1
USAGE = 2
NOT_UP = 3
NOT_FOUND = 4
REFUSED = 5
INTERRUPTED = 130

MEANINGS = (
    (OK, "done"),
    (FAILED, "the job, import, upload or download failed, or an internal error"),
    (USAGE, "wrong usage, or an argument that the mesh does not take"),
    (NOT_UP, "the mesh is not up or does not answer"),
    (NOT_FOUND, "no such dataset, model, job or checkpoint"),
    (REFUSED, "refused: it exists already, is in the wrong state, or you may not"),
    (INTERRUPTED, "interrupted (Ctrl-C); a job that runs goes on"),
)

_BY_CODE = {
    "INVALID_ARGUMENT": USAGE,
    "OUT_OF_RANGE": USAGE,
    "UNAVAILABLE": NOT_UP,
    "DEADLINE_EXCEEDED": NOT_UP,
    "NOT_FOUND": NOT_FOUND,
    "ALREADY_EXISTS": REFUSED,
    "FAILED_PRECONDITION": REFUSED,
    "ABORTED": REFUSED,
    "RESOURCE_EXHAUSTED": REFUSED,
    "PERMISSION_DENIED": REFUSED,
    "UNAUTHENTICATED": REFUSED,
    "CANCELLED": INTERRUPTED,
}


def code_of(error: PlatformError) -> int:
    """The exit code for an error of the mesh; an unforeseen one is a failure."""
    return _BY_CODE.get(error.code, FAILED)
