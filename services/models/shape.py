"""The sizes of a model's layers, read off its configuration: nothing is loaded for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FILE = "config.json"


@dataclass(frozen=True)
class ModelShape:
    """`hidden` is the width of the residual stream, `inner` that of a feed-forward layer (0 where it is not known)."""

    layers: int
    hidden: int
    inner: int
    vocabulary: int


def shape_of(files: Mapping[str, bytes]) -> ModelShape | None:
    """By the model's FILE; None where the configuration does not tell in words that are known here."""
    try:
        document: dict[str, Any] = json.loads(files[FILE])
        # Of a model of several kinds of input the part that writes.
        config = {**document, **(document.get("text_config") or {})}
        hidden = _number(config, "hidden_size", "n_embd")
        inner = config.get("intermediate_size") or config.get("n_inner") or 4 * hidden
        # Of experts only some are asked, and each may be smaller than the configuration's first size.
        sparse = any("expert" in key and value for key, value in config.items())
        return ModelShape(
            layers=_number(config, "num_hidden_layers", "n_layer"),
            hidden=hidden,
            inner=0 if sparse else int(inner),
            vocabulary=_number(config, "vocab_size"),
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _number(config: Mapping[str, Any], *names: str) -> int:
    return next(int(config[name]) for name in (*(name for name in names if config.get(name)), names[0]))
