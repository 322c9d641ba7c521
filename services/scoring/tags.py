"""Tags such as <think>…</think><answer>…</answer> in a text: each once, in order, and nothing around them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Form:
    """Each from 0 to 1. `once`: the share of tags that are opened once and closed once; `order`: 1 where all of them
    follow each other as they should and none stands in another; `clean`: 1 where in addition nothing but white space
    is outside; `filled`: the share of tags with something other than white space inside, where `once` holds."""

    once: float
    order: float
    clean: float
    filled: float

    @property
    def whole(self) -> bool:
        return self.once == self.order == self.clean == self.filled == 1


def form(text: str, tags: Sequence[str]) -> Form:
    """How `text` keeps to the form of `tags`. Linear in the length of the text."""
    marks = [mark for tag in tags for mark in (f"<{tag}>", f"</{tag}>")]
    wanted = {mark: index for index, mark in enumerate(marks)}
    found = list(re.finditer("|".join(map(re.escape, marks)), text))
    places: list[list[re.Match[str]]] = [[] for _ in marks]
    for match in found:
        places[wanted[match[0]]].append(match)
    pairs = [(places[2 * index], places[2 * index + 1]) for index in range(len(tags))]
    once = [len(opening) == len(closing) == 1 for opening, closing in pairs]
    filled = [
        is_once and bool(text[opening[0].end() : closing[0].start()].strip())
        for is_once, (opening, closing) in zip(once, pairs, strict=True)
    ]
    order = all(once) and [wanted[match[0]] for match in found] == list(range(len(marks)))
    return Form(
        once=sum(once) / len(tags),
        order=float(order),
        clean=float(order and not _outside(text, found).strip()),
        filled=sum(filled) / len(tags),
    )


def _outside(text: str, found: Sequence[re.Match[str]]) -> str:
    """What stands before, between and after pairs of marks in order."""
    ends = [0, *(match.end() for match in found[1::2])]
    starts = [*(match.start() for match in found[::2]), len(text)]
    return "".join(text[end:start] for end, start in zip(ends, starts, strict=True))
