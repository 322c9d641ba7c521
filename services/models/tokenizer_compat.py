"""Whether two models mean the same by a token, read off their files: no tokenizer is loaded for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

FILES = ("tokenizer.json", "config.json")


def differs(one: Mapping[str, bytes], other: Mapping[str, bytes]) -> str:
    """What sets the vocabularies apart of two models, by those of FILES that each has; empty where nothing does.

    The same vocabulary is the same text for every number. Where a model has no tokenizer.json (SentencePiece alone)
    only the sizes can be compared.
    """
    left, right = _tokens(one), _tokens(other)
    if left is None or right is None:
        sizes = _size(one), _size(other)
        return "" if sizes[0] == sizes[1] else f"{sizes[0]} tokens and {sizes[1]}"
    wrong = sorted(number for number in left.keys() | right.keys() if left.get(number) != right.get(number))
    if not wrong:
        return ""
    first = wrong[0]
    return f"{len(wrong)} tokens differ, such as {first}: {_shown(left, first)} and {_shown(right, first)}"


def _tokens(files: Mapping[str, bytes]) -> dict[int, str] | None:
    """Text by number."""
    try:
        document = json.loads(files["tokenizer.json"])
        vocabulary: Any = document["model"]["vocab"]
        # A unigram model lists its tokens with their probabilities.
        pairs = (
            ((text, number) for text, number in vocabulary.items())
            if isinstance(vocabulary, dict)
            else ((entry[0], number) for number, entry in enumerate(vocabulary))
        )
        found = {int(number): str(text) for text, number in pairs}
        return found | {int(token["id"]): str(token["content"]) for token in document.get("added_tokens") or []}
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        return None


def _size(files: Mapping[str, bytes]) -> int | None:
    try:
        return json.loads(files["config.json"])["vocab_size"]
    except (KeyError, TypeError, ValueError):
        return None


def _shown(tokens: Mapping[int, str], number: int) -> str:
    return repr(tokens[number][:40]) if number in tokens else "none"
