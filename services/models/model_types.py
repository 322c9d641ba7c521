"""Which types of models the installed transformers knows, and which one a misspelt name means."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from services.models.kinds import is_reward_model

_NEAR = 3


def unknown_type(model_type: Any) -> str:
    """Why a configuration's `model_type` is none that transformers has, with the nearest names; empty where it is."""
    from transformers import CONFIG_MAPPING, __version__

    if model_type is not None and not isinstance(model_type, str):
        return f"model_type is {str(model_type)[:80]}; it must be a name, llama for example"
    if not model_type:
        return "there is no model_type, which says how to build the model; write the one that it was trained as"
    if model_type in CONFIG_MAPPING:
        return ""
    near = difflib.get_close_matches(model_type.lower(), [*CONFIG_MAPPING.keys()], n=_NEAR, cutoff=0.6)
    meant = f"; did you mean {' or '.join(near)}?" if near else "; import a model of a type that it has"
    return f"transformers {__version__} knows no model_type {model_type[:80]!r}{meant}"


def no_model_class(config: Mapping[str, Any]) -> str:
    """Why transformers has no class for a configuration of a known type: one that writes text, or, of a reward model,
    scores it; empty where it has."""
    from transformers.models.auto import modeling_auto

    kind = config["model_type"]
    if is_reward_model(config.get("architectures")):
        names, what = modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES, "scores text (a reward model)"
    else:
        names, what = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "writes text"
    if kind in names:
        return ""
    return f"transformers has no model of model_type {kind!r} that {what}; import one that does"
