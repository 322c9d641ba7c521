"""Labels: a caller's own words on a resource."""

from __future__ import annotations

import re
from collections.abc import Mapping

from services.mesh.errors import Violation

MAX_LABELS = 64
_KEY = re.compile(r"[a-z][a-z0-9_./-]{0,62}")
_VALUE = re.compile(r"[\w .:/@+-]{0,255}")


def check_labels(labels: Mapping[str, str], field: str) -> list[Violation]:
    """Everything that is wrong with them."""
    found = []
    if len(labels) > MAX_LABELS:
        found.append(Violation(field, f"must be at most {MAX_LABELS} (got {len(labels)})"))
    for key, value in labels.items():
        if not _KEY.fullmatch(key):
            found.append(Violation(f"{field}[{key[:63]!r}]", "a key must be 1-63 of [a-z0-9_./-], a letter first"))
        elif not _VALUE.fullmatch(value):
            found.append(Violation(f"{field}[{key!r}]", "a value must be at most 255 letters, digits or [ .:/@+_-]"))
    return found
