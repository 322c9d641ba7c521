"""The critic's model: a language model with one value a token, started from a language model or from a reward model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from services.models.kinds import is_reward_model

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# What transformers' sequence classifiers on language models call their last layer.
SCORE = "score.weight"


def load(folder: str, dtype: torch.dtype, config: Any, trust_remote_code: bool) -> nn.Module:
    """transformers' token classifier with one output, on the weights in `folder`.

    Of a language model the output layer is new; of a reward model it is the one that gives the score, so that the value
    of a conversation's last token is the score of the whole. Raises ValueError where anything else is missing, which
    transformers would fill with random numbers, or where the score is not one linear layer.
    """
    # Read first: `config` has the architecture that the folder's model was trained as.
    scores = is_reward_model(config.architectures)
    loaded: Any = _classifier(config).from_pretrained(
        folder,
        dtype=dtype,
        config=config,
        attn_implementation=config._attn_implementation,
        trust_remote_code=trust_remote_code,
        output_loading_info=True,
    )
    model, report = loaded
    name, head = _head(model)
    missing = {str(key) for key in report["missing_keys"]} | {str(key[0]) for key in report["mismatched_keys"]}
    if wrong := sorted(key for key in missing if not key.startswith(f"{name}.")):
        raise ValueError(f"the critic's weights lack {', '.join(wrong[:5])}")
    # On a rank that gets its weights from the first one there is nothing to write into.
    if scores and not head.weight.is_meta:
        _take_over(head, score_layer(Path(folder)))
    return model


def _classifier(config: Any) -> Any:
    """transformers' token classifier for this kind of model: its own, or where it has none (OLMo 2, Gemma 3) the one
    that it makes the others of.
    """
    from transformers import AutoModelForTokenClassification
    from transformers.modeling_layers import GenericForTokenClassification
    from transformers.models.auto.modeling_auto import MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING, MODEL_MAPPING

    if type(config) in MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING:
        return AutoModelForTokenClassification
    plain: Any = MODEL_MAPPING[type(config)]
    # What every model of the kind inherits: how its weights are named, made and loaded.
    shared = next(kind for kind in plain.__mro__[1:] if kind.__name__.endswith("PreTrainedModel"))
    # verl looks for the code of a model where its class says that it is.
    members = {"__module__": plain.__module__}
    return type(f"{plain.__name__}ForTokenClassification", (GenericForTokenClassification, shared), members)


def score_layer(folder: Path) -> Tensor:
    """The weight (1, H) of a reward model's last layer."""
    index = folder / INDEX
    file = WEIGHTS
    if index.is_file():
        file = json.loads(index.read_text("utf-8"))["weight_map"].get(SCORE, WEIGHTS)
    path = folder / file
    if path.is_file():
        with safe_open(path, framework="pt") as tensors:
            if SCORE in tensors.keys():  # noqa: SIM118 - no mapping
                return tensors.get_tensor(SCORE)
    raise ValueError(f"the reward model has no {SCORE}: its score is not one linear layer, so no critic starts from it")


def _head(model: nn.Module) -> tuple[str, nn.Linear]:
    """The layer that gives values, and what it is called."""
    found = [(name, layer) for name, layer in model.named_children() if isinstance(layer, nn.Linear)]
    if len(found) != 1:
        raise ValueError(f"{type(model).__name__} has {len(found)} output layers; a critic has one")
    return found[0]


@torch.no_grad()
def _take_over(head: nn.Linear, weight: Tensor) -> None:
    if head.weight.shape != weight.shape:
        raise ValueError(f"the reward model's score has the shape {tuple(weight.shape)}, a value {head.weight.shape}")
    head.weight.copy_(weight)
    # A classifier's score has none.
    if head.bias is not None:
        head.bias.zero_()
