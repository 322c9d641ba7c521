"""Equality of strings, up to spelling."""

from __future__ import annotations

from services.scoring.text import Spelling, normalise


def same(candidate: str, reference: str, spelling: Spelling) -> bool:
    """Whether two strings are equal once `spelling` has been applied to both."""
    return normalise(candidate, spelling) == normalise(reference, spelling)
