"""A user's pattern against a model's text, both untrusted: RE2, which has no backtracking and takes linear time.

Python's `re` can take exponential time on a pattern such as (a+)+$. Look-around and back-references, which are what
needs backtracking, do not exist here: https://github.com/google/re2/wiki/Syntax.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import re2

from services.scoring.text import to_utf8

Mode = Literal["search", "fullmatch"]

LONGEST_PATTERN = 1_000
# In bytes of UTF-8. A longer text does not match: time is linear, but the factor is the size of the program.
LONGEST_TEXT = 65_536
# Bounds the compiled program, so that (x{1,1000}){1,1000} is refused and not expanded.
_MEMORY_BYTES = 1 << 20


class BadPatternError(ValueError):
    """The pattern is not RE2, or too large once compiled."""


@functools.lru_cache(maxsize=64)
def compile_pattern(pattern: str, ignore_case: bool) -> Any:
    """The compiled pattern; `.` matches a line break too. Raises BadPatternError."""
    if len(pattern) > LONGEST_PATTERN:
        raise BadPatternError(f"longer than {LONGEST_PATTERN} characters")
    options = re2.Options()
    options.max_mem = _MEMORY_BYTES
    options.log_errors = False
    options.case_sensitive = not ignore_case
    options.dot_nl = True
    try:
        return re2.compile(pattern, options)
    except UnicodeEncodeError:
        raise BadPatternError("holds half a surrogate pair") from None
    except re2.error as error:
        reason = error.args[0] if error.args else ""
        raise BadPatternError(reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)) from None


def group_pattern(pattern: str, name: str) -> str | None:
    """What stands in the group `name`; None where there is no such group, or what stands there is no pattern."""
    _, found, after = pattern.partition(f"(?P<{name}>")
    depth, at, in_class = 1, 0, False
    while found and at < len(after):
        character = after[at]
        at += 2 if character == "\\" else 1
        if in_class or character == "[":
            in_class = character != "]"
        elif character in "()":
            depth += 1 if character == "(" else -1
            if not depth:
                return _alone(after[: at - 1])
    return None


def _alone(pattern: str) -> str | None:
    try:
        compile_pattern(pattern, False)
    except BadPatternError:
        return None
    return pattern


def match(pattern: Any, text: str, mode: Mode) -> dict[str, str] | None:
    """The named groups of the first match, an absent group being empty; None where there is no match."""
    data = to_utf8(text)
    if len(data) > LONGEST_TEXT:
        return None
    find: Callable[[bytes], Any] = pattern.fullmatch if mode == "fullmatch" else pattern.search
    found = find(data)
    if found is None:
        return None
    return {name: (found.group(at) or b"").decode("utf-8", "replace") for name, at in pattern.groupindex.items()}


def all_matches(pattern: Any, text: str, group: str) -> list[str]:
    """What `group` holds in each match, in order; none for a text that is too long."""
    data = to_utf8(text)
    if len(data) > LONGEST_TEXT:
        return []
    at = pattern.groupindex[group]
    return [(found.group(at) or b"").decode("utf-8", "replace") for found in pattern.finditer(data)]
