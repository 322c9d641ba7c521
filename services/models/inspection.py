"""Whether a folder is a model we can train, and what it is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.mesh.artifacts import Manifest
from services.models import chat_template, loading
from services.models.folder import UnusableModelError, check_new
from services.models.model_types import unknown_type
from services.models.template_limits import probing

# Templates bring a system message of their own, some with a page about tools.
_MOST_PROBE_TOKENS = 32_768
# No tokenizer is asked about more: what it takes for a text is many times the text, and it may end the process.
_MOST_PROBE_CHARACTERS = 32 * _MOST_PROBE_TOKENS

_TOO_MUCH = "the chat template makes {} of a question and its answer of one letter each"


@dataclass(frozen=True)
class ModelFacts:
    """`context_length` in tokens; `parameters` counts tied weights once; `dtype` as stored, `float32` for example."""

    architecture: str
    parameters: int
    context_length: int | None
    vocabulary_size: int
    dtype: str
    has_chat_template: bool
    size_bytes: int
    manifest_sha256: str


def inspect(folder: Path) -> ModelFacts:
    """Load the model with no code of its own and describe it. Raises UnusableModelError."""
    _check_files(folder)
    model, tokenizer = _load(folder)
    _check_tokenizer(tokenizer)
    manifest = Manifest.of_folder(folder)
    return ModelFacts(
        architecture=(model.config.architectures or [type(model).__name__])[0],
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        context_length=getattr(model.config, "max_position_embeddings", None),
        vocabulary_size=model.config.vocab_size,
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
        has_chat_template=True,
        size_bytes=manifest.size_bytes,
        manifest_sha256=manifest.sha256,
    )


def _check_tokenizer(tokenizer: Any) -> None:
    if tokenizer.chat_template is None:
        raise UnusableModelError("the tokenizer has no chat template; put a chat_template.jinja into the folder")
    if tokenizer.eos_token_id is None:
        raise UnusableModelError("the tokenizer has no end-of-sequence token; set eos_token in tokenizer_config.json")
    if not tokenizer.is_fast:
        raise UnusableModelError(
            "the tokenizer has no fast form, which says where in a text each token stands; save it as tokenizer.json"
        )
    asked = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        with probing():
            if (size := len(chat_template.text(tokenizer, asked))) > _MOST_PROBE_CHARACTERS:
                raise UnusableModelError(_TOO_MUCH.format(f"{size} characters"))
            tokens, _ = chat_template.trained_tokens(tokenizer, asked, [1])
    except (chat_template.TemplateRefusesError, ValueError) as error:
        raise UnusableModelError(f"the chat template does not render a question and its answer: {error}") from error
    if len(tokens) > _MOST_PROBE_TOKENS:
        raise UnusableModelError(_TOO_MUCH.format(f"{len(tokens)} tokens"))


def _check_files(folder: Path) -> None:
    check_new(folder)
    config: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
    if quantised := config.get("quantization_config"):
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
        raise UnusableModelError(
            f"its weights are quantised ({method}) and can't be trained; import the model that they were made from"
        )


def _load(folder: Path) -> tuple[Any, Any]:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    if why := unknown_type(config.get("model_type")):
        own = "; code of the model's own (auto_map) is never run" if "auto_map" in config else ""
        raise UnusableModelError(why + own)
    try:
        load = loading.reward_model if loading.is_classifier(folder) else loading.language_model
        return load(folder), loading.tokenizer(folder)
    except Exception as error:
        # transformers raises every kind here; the text is what helps.
        raise UnusableModelError(f"it does not load: {error}") from error
