"""What a caller may ask of an upload; every violation at once."""

from __future__ import annotations

import math

from services.dataset.entities import Dataset
from services.dataset.formats import formats
from services.dataset.reading.field_mapping import MAX_KEY_CHARACTERS, MAX_KEYS, targets
from services.dataset.store import datasets
from services.dataset.uploads.options import Split, UploadOptions
from services.mesh import names
from services.mesh.db.postgres import Connection
from services.mesh.errors import NotFound, Violation

MAX_INVALID_ROWS = 1_000_000_000
MAX_SPLIT_SHARE = 0.5


def check_options(options: UploadOptions, parent: str) -> list[Violation]:
    """What is wrong with them whatever the dataset holds."""
    return [*_check_tolerance(options), *_check_names(options.field_mapping), *_check_split(options.split, parent)]


async def check_against_dataset(connection: Connection, options: UploadOptions, dataset: Dataset) -> list[Violation]:
    """What is wrong with them for this dataset."""
    known = targets(formats.get(dataset.format))
    listed = ", ".join(known[:12])
    found = [
        Violation(f"upload.field_mapping.{key}", f"{name[:80]!r} is no key of format {dataset.format}; one of {listed}")
        for key, name in sorted(options.field_mapping.items())
        if name not in known
    ]
    if options.split is None:
        return found
    other = split_dataset(dataset.name, options.split)
    try:
        other_format = (await datasets.get(connection, other)).format
    except NotFound:
        return found
    if other_format != dataset.format:
        message = f"{other} holds rows of format {other_format}, this dataset {dataset.format}; take another name"
        found.append(Violation("upload.split.name", message))
    return found


def split_dataset(dataset: str, split: Split) -> str:
    """The name of the dataset that gets the rows held out."""
    return f"{dataset}-{split.name}"


def _check_tolerance(options: UploadOptions) -> list[Violation]:
    found: list[Violation] = []
    count, share = options.max_invalid_rows, options.max_invalid_share
    if not 0 <= count <= MAX_INVALID_ROWS:
        found.append(Violation("upload.max_invalid_row_count", f"must be from 0 to {MAX_INVALID_ROWS} (got {count})"))
    if not 0 <= share < 1:
        found.append(Violation("upload.max_invalid_row_share", f"must be at least 0 and below 1 (got {share})"))
    if count and share:
        message = "stands beside max_invalid_row_count; give one of the two"
        found.append(Violation("upload.max_invalid_row_share", message))
    return found


def _check_names(mapping: dict[str, str]) -> list[Violation]:
    found: list[Violation] = []
    if len(mapping) > MAX_KEYS:
        found.append(Violation("upload.field_mapping", f"must have at most {MAX_KEYS} keys (got {len(mapping)})"))
    for key, name in sorted(mapping.items()):
        if not key or len(key) > MAX_KEY_CHARACTERS or "\0" in key:
            message = f"a key of the file must have 1 to {MAX_KEY_CHARACTERS} characters (got {key[:80]!r})"
            found.append(Violation("upload.field_mapping", message))
        if key == name:
            found.append(Violation(f"upload.field_mapping.{key[:80]}", "is read as itself; leave it out"))
    twice = sorted({name for name in mapping.values() if list(mapping.values()).count(name) > 1})
    for name in twice:
        keys = ", ".join(sorted(key[:80] for key in mapping if mapping[key] == name))
        found.append(Violation("upload.field_mapping", f"{keys} are all read as {name[:80]!r}; keep one of them"))
    return found


def _check_split(split: Split | None, parent: str) -> list[Violation]:
    if split is None:
        return []
    found: list[Violation] = []
    if not (math.isfinite(split.share) and 0 < split.share <= MAX_SPLIT_SHARE):
        message = f"must be above 0 and at most {MAX_SPLIT_SHARE} (got {split.share:g})"
        found.append(Violation("upload.split.share", message))
    if not split.name or names.check_new_id(split_dataset(parent.rpartition("/")[2], split), ""):
        message = f"the dataset's id, a hyphen and this name must be an id themselves (got {split.name[:80]!r})"
        found.append(Violation("upload.split.name", message))
    return found
