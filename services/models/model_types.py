"""Which types of models the installed transformers knows, and which one a misspelt name means."""

from __future__ import annotations

import difflib
from typing import Any

_NEAR = 3


def unknown_type(model_type: Any) -> str:
    """Why a configuration's `model_type` is none that transformers has, with the nearest names; empty where it is."""
    from transformers import CONFIG_MAPPING, __version__

    if not isinstance(model_type, str) or not model_type:
        return "config.json has no model_type, so nobody knows how to build the model"
    if model_type in CONFIG_MAPPING:
        return ""
    near = difflib.get_close_matches(model_type.lower(), [*CONFIG_MAPPING.keys()], n=_NEAR, cutoff=0.6)
    meant = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"transformers {__version__} knows no model_type {model_type[:80]!r}{meant}"
