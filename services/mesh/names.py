"""Resource names (AIP-122) and ids.

A name is a path of collection words and ids: `projects/p/trainingJobs/j`. A pattern writes the ids in braces:
`projects/{project}/trainingJobs/{training_job}`.
"""

from __future__ import annotations

import re
import secrets
import time
import uuid

from services.mesh.errors import InvalidArgument, Violation

# A caller's id: RFC 1034 label in lower case, a letter first.
_SLUG = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_NUMBER = re.compile(r"[1-9][0-9]{0,17}")
# Ids that the server makes: version numbers, `latest`, `step-100`.
_SERVER_ID = re.compile(r"latest|step-[0-9]{1,18}")

PROJECT = "projects/{project}"
DATASET = "projects/{project}/datasets/{dataset}"
DATASET_VERSION = "projects/{project}/datasets/{dataset}/versions/{version}"
UPLOAD = "projects/{project}/datasets/{dataset}/uploads/{upload}"
MODEL = "projects/{project}/models/{model}"
TRAINING_JOB = "projects/{project}/trainingJobs/{training_job}"
TRAINING_CHECKPOINT = "projects/{project}/trainingJobs/{training_job}/checkpoints/{checkpoint}"


def uuid7() -> uuid.UUID:
    """A UUIDv7 (RFC 9562): 48 bits of Unix milliseconds, then random bits, so that ids sort by time."""
    value = (time.time_ns() // 1_000_000) << 80 | secrets.randbits(80)
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return uuid.UUID(int=value)


def match(pattern: str, name: str) -> dict[str, str] | None:
    """The ids of `name` by the words in the pattern's braces, or None when it does not fit."""
    parts, words = name.split("/"), pattern.split("/")
    if len(parts) != len(words):
        return None
    ids: dict[str, str] = {}
    for part, word in zip(parts, words, strict=True):
        if word.startswith("{"):
            if not _is_id(part):
                return None
            ids[word.strip("{}")] = part
        elif part != word:
            return None
    return ids


def parse(pattern: str, name: str, field: str = "name") -> dict[str, str]:
    """Like `match`. Raises InvalidArgument on `field` when the name does not fit."""
    ids = match(pattern, name)
    if ids is None:
        raise InvalidArgument.of(field, f"must be of the form {pattern}" + (f" (got {name[:120]!r})" if name else ""))
    return ids


def child(parent: str, collection: str, id_: str) -> str:
    return f"{parent}/{collection}/{id_}"


def project_of(name: str) -> str:
    """The project id of any resource name."""
    return name.split("/", 2)[1]


def check_new_id(value: str, field: str) -> list[Violation]:
    """What is wrong with an id that a caller chose; an empty one is right and means that the server makes it."""
    if not value or _SLUG.fullmatch(value):
        return []
    return [Violation(field, f"must be 1-63 of [a-z0-9-], a letter first, no hyphen last (got {value[:80]!r})")]


def check_request_id(value: str, field: str = "request_id") -> list[Violation]:
    if not value or _UUID.fullmatch(value.lower()):
        return []
    return [Violation(field, "must be a UUID, such as f81d4fae-7dec-11d0-a765-00a0c91e6bf6")]


def _is_id(part: str) -> bool:
    return any(kind.fullmatch(part) for kind in (_SLUG, _UUID, _NUMBER, _SERVER_ID))
