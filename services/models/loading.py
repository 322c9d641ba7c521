"""Loading a model folder as its users do: no code of its own, and every tensor that it needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from services.models.folder import check_stored
from services.models.kinds import is_reward_model


def is_classifier(folder: Path) -> bool:
    """Whether the model scores rather than writes: a reward model."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
    return is_reward_model(config.get("architectures"))


def attention(folder: Path) -> str:
    """The implementation to load it with where there is no flash attention: PyTorch's, or transformers' own. The first
    has no place for the cap on attention's logits that Gemma 2 is trained with, and leaves it out without a word.
    """
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        # Whoever loads it says so.
        return "sdpa"
    return "eager" if config.get("attn_logit_softcapping") else "sdpa"


def tokenizer(folder: Path) -> Any:
    """Raises what transformers raises, and UnusableModelError for a folder that names files outside it."""
    from transformers import AutoTokenizer

    check_stored(folder)
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def language_model(folder: Path, dtype: str = "auto") -> Any:
    """On the CPU, in `dtype`, or the precision it is stored in. Raises what transformers raises, ValueError for what is
    not whole, and UnusableModelError for a folder that names files outside it."""
    from transformers import AutoModelForCausalLM

    return _whole(AutoModelForCausalLM, folder, dtype)


def reward_model(folder: Path) -> Any:
    """The same of a sequence classifier with one output."""
    from transformers import AutoModelForSequenceClassification

    model = _whole(AutoModelForSequenceClassification, folder)
    if model.config.num_labels != 1:
        raise ValueError(f"it has {model.config.num_labels} outputs; a reward model has one")
    return model


def _whole(auto: Any, folder: Path, dtype: str = "auto") -> Any:
    check_stored(folder)
    model, report = auto.from_pretrained(
        folder,
        trust_remote_code=False,
        local_files_only=True,
        use_safetensors=True,
        dtype=dtype,
        attn_implementation=attention(folder),
        output_loading_info=True,
    )
    # transformers fills a missing tensor with random numbers and only warns.
    if wrong := sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]])):
        raise ValueError(f"tensors are missing or have another shape: {', '.join(wrong[:5])}")
    return model


def cast(model: Any, dtype: Any) -> Any:
    """`model` with every parameter in `dtype`. Its buffers stay: the frequencies of positions are in fp32 whatever a
    model is in, and rounded to bf16 they put far tokens in other places."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model
