"""Loading a model folder as its users do: no code of its own, and every tensor that it needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from services.models.folder import check_stored
from services.models.kinds import is_reward_model
from services.models.weights_fit import Difference


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
    return _whole(folder, dtype, classifier=False)


def reward_model(folder: Path) -> Any:
    """The same of a sequence classifier with one output."""
    model = _whole(folder, "auto", classifier=True)
    if model.config.num_labels != 1:
        raise ValueError(f"it has {model.config.num_labels} outputs; a reward model has one")
    return model


def skeleton(folder: Path) -> Any:
    """The model on the meta device: its configuration and shapes, and no weights. Raises what transformers raises."""
    import torch
    from transformers import AutoConfig

    check_stored(folder)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    with torch.device("meta"):
        return _auto(is_classifier(folder)).from_config(config, attn_implementation=attention(folder))


def with_differences(folder: Path, dtype: str = "auto", classifier: bool | None = None) -> tuple[Any, Difference]:
    """The model, as its architecture says or as a `classifier`, and where its tensors are not those of the files:
    transformers fills a missing one with random numbers and only warns. Raises what transformers raises."""
    check_stored(folder)
    model, report = _auto(is_classifier(folder) if classifier is None else classifier).from_pretrained(
        folder,
        trust_remote_code=False,
        local_files_only=True,
        use_safetensors=True,
        dtype=dtype,
        attn_implementation=attention(folder),
        output_loading_info=True,
        # They are told with the missing ones, by whoever loads.
        ignore_mismatched_sizes=True,
    )
    return model, Difference(
        missing=tuple(map(str, report["missing_keys"])),
        mismatched=tuple((str(name), tuple(one), tuple(other)) for name, one, other in report["mismatched_keys"]),
        unused=tuple(map(str, report["unexpected_keys"])),
    )


def _auto(classifier: bool) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    return AutoModelForSequenceClassification if classifier else AutoModelForCausalLM


def _whole(folder: Path, dtype: str, *, classifier: bool) -> Any:
    model, found = with_differences(folder, dtype, classifier)
    if wrong := sorted([*found.missing, *(name for name, *_ in found.mismatched)]):
        raise ValueError(f"tensors are missing or have another shape: {', '.join(wrong[:5])}")
    return model


def cast(model: Any, dtype: Any) -> Any:
    """`model` with every parameter in `dtype`. Its buffers stay: the frequencies of positions are in fp32 whatever a
    model is in, and rounded to bf16 they put far tokens in other places."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model
