"""One row of JSON text as a value, and in words what is wrong with it."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec

from services.dataset.reading.findings import Problems, Reason, shown
from services.dataset.reading.metadata import MAX_DEPTH

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


SHOWN_BYTES = 40


class _KeyTwiceError(Exception):
    pass


def parse(text: bytes, problems: Problems) -> Any:
    """The decoded row; None when something is wrong (reported): no JSON, not UTF-8, too deep, a key twice."""
    try:
        value = msgspec.json.decode(text)
    except UnicodeDecodeError as error:
        place = f"byte {error.start + 1} of a text" if error.start else "the beginning of a text"
        problems.add("", Reason.INVALID_UTF8, f"is not valid UTF-8 at {place}; save the file as UTF-8")
    except RecursionError:
        problems.add("", Reason.TOO_DEEP, f"is nested deeper than {MAX_DEPTH} levels")
    except msgspec.MsgspecError as error:
        _explain(text, str(error), problems)
    else:
        return None if key_twice(text, problems) else value
    return None


def _explain(text: bytes, error: str, problems: Problems) -> None:
    if "out of range" in error:
        problems.add("", Reason.INVALID_NUMBER, "holds a number beyond the range of a 64-bit float")
    elif _only_constants_wrong(text):
        problems.add("", Reason.INVALID_NUMBER, "holds NaN or Infinity, which JSON does not have; leave the key out")
    elif error.endswith("truncated") and _SURROGATE.search(text) and _decodes(text):
        problems.add("", Reason.INVALID_UTF8, "holds half of a surrogate pair; save the file as UTF-8")
    else:
        what = error.removeprefix("JSON is malformed: ")
        start = shown(text[:SHOWN_BYTES].decode(errors="replace"))
        problems.add("", Reason.INVALID_JSON, f"is not valid JSON: {what}; the row begins with {start}")


def _only_constants_wrong(text: bytes) -> bool:
    found: list[str] = []
    try:
        json.loads(text.decode(), parse_constant=found.append)
    except (ValueError, RecursionError):
        return False
    return bool(found)


def _decodes(text: bytes) -> bool:
    try:
        json.loads(text.decode())
    except (ValueError, RecursionError):
        return False
    return True


def key_twice(text: bytes, problems: Problems) -> bool:
    """Whether an object of the row has a key twice (reported): parsers differ in which of the two they believe."""

    def unique(pairs: list[tuple[str, Any]]) -> None:
        if len({key for key, _ in pairs}) < len(pairs):
            raise _KeyTwiceError(next(key for i, (key, _) in enumerate(pairs) if key in {k for k, _ in pairs[:i]}))

    try:
        json.loads(text.decode(), object_pairs_hook=unique)
    except _KeyTwiceError as error:
        problems.add("", Reason.DUPLICATE_KEY, f"has the key {shown(str(error))} twice in one object; keep one of them")
        return True
    except (ValueError, RecursionError):
        return False
    return False
