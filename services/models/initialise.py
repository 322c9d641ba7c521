"""A model from scratch: a transformers configuration, a tokenizer and a seed become a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
from transformers.configuration_utils import PretrainedConfig

from services.models.char_tokenizer import character_tokenizer
from services.models.folder import check_settings
from services.models.loading import tokenizer as load_tokenizer
from services.models.model_types import no_model_class, unknown_type
from services.models.refusals import config_problems, config_refusal

DEFAULT_CONTEXT_LENGTH = 2048


def initialise(spec: dict[str, Any], seed: int, folder: Path) -> None:
    """Write an untrained model to `folder`, fp32 safetensors with its tokenizer.

    `spec` is {"config": {"model_type": "llama", …}, "tokenizer": {"kind": "characters", "alphabet": "…"} or a path}.
    The vocabulary's size and the special tokens' ids are the tokenizer's. Raises ValueError when the spec is wrong,
    UnusableModelError where it or the tokenizer's folder names files.
    """
    settings = dict(spec.get("config") or {})
    model_type = settings.pop("model_type", None)
    if not model_type:
        raise ValueError("config.model_type is missing; 'llama' for example")
    if why := unknown_type(model_type) or no_model_class({**settings, "model_type": model_type}):
        raise ValueError(f"config: {why}")
    if problems := config_problems(settings, "config"):
        raise ValueError("\n".join(problems))
    check_settings(settings)
    tokenizer = _tokenizer(spec.get("tokenizer"), settings.get("max_position_embeddings", DEFAULT_CONTEXT_LENGTH))
    config = _config(model_type, settings, tokenizer)
    torch.manual_seed(seed)
    try:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except Exception as error:
        # transformers raises every kind here, too.
        raise ValueError(config_refusal(error, settings, "config")) from error
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _tokenizer(spec: Any, context_length: int) -> Any:
    if isinstance(spec, str):
        return load_tokenizer(Path(spec))
    if isinstance(spec, dict) and spec.get("kind") == "characters":
        return character_tokenizer(str(spec.get("alphabet") or ""), context_length)
    raise ValueError('tokenizer must be a path or {"kind": "characters", "alphabet": "…"}')


def _config(model_type: str, settings: dict[str, Any], tokenizer: Any) -> PretrainedConfig:
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end token, so no answer would ever end")
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    tokens = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": pad}
    try:
        return AutoConfig.for_model(model_type, **{**settings, **tokens, "vocab_size": len(tokenizer)})
    except Exception as error:
        # transformers and its validators raise every kind here.
        raise ValueError(config_refusal(error, settings, "config")) from error
