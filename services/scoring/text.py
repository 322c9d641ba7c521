"""Where an answer stands in a text, and what counts as the same spelling of it. Every function takes any string."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Literal

Place = Literal["whole", "last_line", "after_marker", "boxed"]

_BOX = re.compile(r"\\(?:boxed|fbox)\s{0,8}\{")
_SPACES = re.compile(r"\s+")


@dataclass(frozen=True)
class Spelling:
    """Differences of spelling that do not matter. They are applied to both sides, in this order."""

    unicode: bool = False  # NFKC: full-width digits, ligatures, compatibility forms
    case: bool = False  # casefold: ß equals ss
    spaces: bool = False  # a run of white space equals one space
    strip: bool = True  # white space at both ends


def locate(text: str, place: Place, marker: str) -> str | None:
    """The part of `text` in which the answer is looked for; None where the text has no such place.

    `last_line` is the last line that is not blank, `after_marker` all that follows the last `marker`, `boxed` the
    content of the last \\boxed{…} whose braces balance.
    """
    if place == "whole":
        return text
    if place == "last_line":
        return next((line for line in reversed(text.splitlines()) if line.strip()), None)
    if place == "after_marker":
        _, found, after = text.rpartition(marker)
        return after if found else None
    return last_boxed(text)


def last_boxed(text: str) -> str | None:
    """The content of the last \\boxed{…} that is closed. Linear in the length of the text, however it is nested."""
    starts = {match.end() - 1: match.end() for match in _BOX.finditer(text)}
    if not starts:
        return None
    open_at: list[int] = []
    best: tuple[int, int] | None = None
    for at in (match.start() for match in re.finditer(r"(?<!\\)[{}]", text)):
        if text[at] == "{":
            open_at.append(at)
        elif open_at:
            begin = starts.get(open_at.pop())
            if begin is not None and (best is None or begin > best[0]):
                best = (begin, at)
    return text[best[0] : best[1]] if best else None


def normalise(text: str, spelling: Spelling) -> str:
    """`text` with the differences that `spelling` names taken away."""
    if spelling.unicode:
        text = unicodedata.normalize("NFKC", text)
    if spelling.case:
        text = text.casefold()
    if spelling.spaces:
        text = _SPACES.sub(" ", text)
    return text.strip() if spelling.strip else text


def to_utf8(text: str) -> bytes:
    """UTF-8 of any Python string: half a surrogate pair, which a sampled token may leave behind, becomes '?'."""
    return text.encode("utf-8", "replace")
