"""What people type for a name → the full resource name.

Short forms are ids in the project at hand: `digits` (a model, a dataset, a job), `digits:3` (a version),
`sft-k3x9qa/step-100` (a checkpoint). A full resource name is always taken as it is.
"""

from __future__ import annotations

import secrets

from services.mesh import names
from services.mesh.errors import InvalidArgument

# Crockford's base 32 without the letters that are read as digits.
_ID_LETTERS = "0123456789abcdefghjkmnpqrstvwxyz"


def project(id_: str) -> str:
    """`projects/{id}`. Raises InvalidArgument on `--project`."""
    return f"projects/{_id(id_, '--project')}"


def model(parent: str, text: str, field: str = "MODEL") -> str:
    return resource(parent, names.MODEL, text, field)


def dataset(parent: str, text: str, field: str = "DATASET") -> str:
    return resource(parent, names.DATASET, text, field)


def job(parent: str, text: str, field: str = "JOB") -> str:
    return resource(parent, names.TRAINING_JOB, text, field)


def dataset_version(parent: str, text: str, field: str = "DATASET") -> str:
    """`digits` (the newest version), `digits:3`, the name of a dataset or of a version. Raises InvalidArgument."""
    if names.match(names.DATASET_VERSION, text) is not None:
        return text
    name, _, version = text.partition(":")
    return names.child(dataset(parent, name, field), "versions", _id(version or "latest", field))


def checkpoint(parent: str, text: str, field: str = "CHECKPOINT") -> tuple[str, str | None]:
    """The job and, where one is named, the checkpoint: `job`, `job/step-100`, `job/100` or a full name of either.

    Raises InvalidArgument on `field`.
    """
    if names.match(names.TRAINING_CHECKPOINT, text) is not None:
        return text.partition("/checkpoints/")[0], text
    if names.match(names.TRAINING_JOB, text) is not None:
        return text, None
    name, _, step = text.partition("/")
    full = job(parent, name, field)
    if not step:
        return full, None
    return full, names.child(full, "checkpoints", _id(step if step.startswith("step-") else f"step-{step}", field))


def short(name: str) -> str:
    """How a resource is called in a table: the id, `dataset:version`, `job/checkpoint`."""
    parts = name.split("/")
    if parts[-2:-1] == ["versions"]:
        return f"{parts[-3]}:{parts[-1]}"
    return f"{parts[-3]}/{parts[-1]}" if parts[-2:-1] == ["checkpoints"] else parts[-1]


def new_id(prefix: str) -> str:
    """`grpo-k3x9qa`: short enough to type, 30 bits of chance. The server would make a UUID."""
    return f"{prefix.replace('_', '-')}-{''.join(secrets.choice(_ID_LETTERS) for _ in range(6))}"


def resource(parent: str, pattern: str, text: str, field: str) -> str:
    """A resource whose names are of `pattern`. Raises InvalidArgument on `field`."""
    if names.match(pattern, text) is not None:
        return text
    return names.child(parent, pattern.split("/")[-2], _id(text, field))


def _id(text: str, field: str) -> str:
    if names.match("{id}", text) is None:
        raise InvalidArgument.of(field, f"{text[:80]!r} is not a name: letters a-z, digits and hyphens")
    return text
