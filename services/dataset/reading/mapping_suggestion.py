"""A mapping of names for a file whose keys tell no spelling: a guess by the names, shown only where it works."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

from services.dataset.reading.field_mapping import MAX_KEY_CHARACTERS, FieldMapping
from services.dataset.reading.findings import Findings, Problems
from services.dataset.reading.input_layouts import Format, canonical

# What each format needs, the fullest first.
_WANTED = {
    "messages": (("messages",), ("prompt", "completion")),
    "prompt": (("prompt", "answer"), ("prompt",)),
    "preference": (("prompt", "chosen", "rejected"), ("chosen", "rejected")),
}
# Words in the names of keys; the earlier, the likelier.
_WORDS = {
    "messages": ("message", "conversation", "dialog", "chat", "turn"),
    "prompt": ("prompt", "question", "query", "instruction", "request", "problem", "user", "human", "input", "source"),
    "completion": (
        "completion",
        "answer",
        "response",
        "reply",
        "output",
        "assistant",
        "solution",
        "target",
        "gold",
        "label",
    ),
    "answer": ("answer", "solution", "target", "gold", "truth", "label", "result", "output", "response"),
    "chosen": ("chosen", "prefer", "better", "best", "win", "accept", "good", "positive"),
    "rejected": ("reject", "dispref", "worse", "worst", "los", "bad", "negative"),
}
_CANDIDATES = 4


def suggest(entry: type[Format], rows: list[dict[str, Any]]) -> dict[str, str]:
    """Keys of the file → keys of the format, under which every one of `rows` is valid; empty where none is found."""
    for wanted in _WANTED.get(entry.name, ()):
        for names in _guesses(wanted, rows):
            if _works(entry, rows, names):
                return names
    return {}


def _guesses(wanted: tuple[str, ...], rows: list[dict[str, Any]]) -> Iterator[dict[str, str]]:
    keys = [key for key in rows[0] if all(_may_be_text(row.get(key)) for row in rows)] if rows else []
    keys = [key for key in keys if len(key) <= MAX_KEY_CHARACTERS and key.isprintable() and not set("=,") & set(key)]
    ranked = [_ranked(name, keys) for name in wanted]
    for chosen in product(*ranked):
        if len(set(chosen)) == len(chosen):
            yield {key: name for key, name in zip(chosen, wanted, strict=True) if key != name}
    texts = [key for key in keys if isinstance(rows[0][key], str)]
    if len(texts) == len(wanted) > 1 and not all(ranked):
        yield {key: name for key, name in zip(texts, wanted, strict=True) if key != name}


def _ranked(name: str, keys: list[str]) -> list[str]:
    words = _WORDS[name]

    def place(key: str) -> int:
        return next((index for index, word in enumerate(words) if word in key.lower()), len(words))

    likely = [key for key in keys if place(key) < len(words)]
    return sorted(likely, key=lambda key: (key != name, place(key), len(key)))[:_CANDIDATES]


def _may_be_text(value: Any) -> bool:
    return (isinstance(value, str) and bool(value.strip())) or isinstance(value, (list, int, float))


def _works(entry: type[Format], rows: list[dict[str, Any]], names: dict[str, str]) -> bool:
    mapping = FieldMapping(names)
    return bool(names) and all(
        canonical(entry, row, Problems(Findings(0), 1, None), mapping.rename) is not None for row in rows
    )
