"""Adapters into the weights that they lie over: W + scale·B·A with scale = alpha/rank, or alpha/√rank (rsLoRA).

Hu et al. 2021 (arXiv 2106.09685), Kalajdzievski 2023 (arXiv 2312.03732). The base's files are copied as they are, and
only the tensors that an adapter trained are written over: computed in fp32 and rounded once to the type that the base
stores them in. What no adapter names keeps its bytes, and memory holds a part of one tensor at a time.
"""

from __future__ import annotations

import json
import re
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from services.mesh.artifacts import Manifest
from services.models.folder import CONFIG, UnusableModelError, check_stored, may_belong
from services.models.inspection import ModelFacts, document, inspect
from services.models.refusals import config_refusal
from services.models.tensor_files import DTYPES, StoredTensor, stored_tensors, update, weight_files

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_KEY = re.compile(r"base_model\.model\.(?P<layer>.+)\.lora_(?P<side>[AB])\.weight")
# Settings that change nothing in what an adapter adds, or that are taken into account here.
_UNDERSTOOD = {
    *("peft_type", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "peft_version"),
    *("inference_mode", "r", "lora_alpha", "lora_dropout", "use_rslora", "fan_in_fan_out"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
}


@dataclass(frozen=True)
class Adapter:
    """`pairs` are A (rank, inputs) and B (outputs, rank) in fp32, by the name of the layer that they change."""

    scale: float
    pairs: Mapping[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Change:
    """What is added to a stored tensor of `left`'s rows and `right`'s columns: scale·left·right."""

    tensor: StoredTensor
    left: Tensor
    right: Tensor
    scale: float


def merge(base: Path, base_sha256: str, adapters: Sequence[Path], target: Path) -> ModelFacts:
    """Write the base with each adapter merged in its turn to `target`, which appears whole, loaded and described, or
    not at all. The tokenizer and the chat template are the last adapter's.

    `base_sha256` is the manifest of the weights that the first adapter was trained over. Raises UnusableModelError for
    another base, and for an adapter that is damaged, of other layers, or of a kind that is not merged here.
    """
    found = Manifest.of_folder(base).sha256
    if found != base_sha256:
        raise UnusableModelError(
            f"the adapter was trained over weights of manifest {base_sha256}, and these are {found}"
        )
    # Everything that can be refused is, before the first byte is copied.
    read = [read_adapter(folder) for folder in adapters]
    layers = _Layers(base)
    for adapter in read:
        layers.changes(adapter, base)
    partial = target.with_name(f".{target.name}.{uuid.uuid4()}")
    try:
        _copy(base, partial)
        for adapter in read:
            for change in layers.changes(adapter, partial):
                update(change.tensor, change.left, change.right, change.scale)
        _copy_tokenizer(adapters[-1], partial)
        facts = inspect(partial)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return facts


def read_adapter(folder: Path) -> Adapter:
    """Raises UnusableModelError for what is no adapter in PEFT form, and for kinds of LoRA that are not merged here."""
    config = _config(folder)
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise UnusableModelError(f"{ADAPTER_CONFIG} has r {rank!r} and lora_alpha {alpha!r}")
    sides: dict[str, dict[str, Tensor]] = {}
    for key, tensor in _tensors(folder).items():
        found = _KEY.fullmatch(key)
        if found is None:
            raise UnusableModelError(f"the adapter has a tensor {key}, which is none of a plain LoRA's")
        if not tensor.isfinite().all():
            raise UnusableModelError(f"{key} holds what is no number")
        sides.setdefault(found["layer"], {})[found["side"]] = tensor.float()
    if not sides:
        raise UnusableModelError("the adapter has no tensors")
    for layer, pair in sides.items():
        if pair.keys() != {"A", "B"} or pair["A"].shape[:1] != (rank,) or pair["B"].shape[1:] != (rank,):
            raise UnusableModelError(f"the adapter of {layer} is no pair of A and B of rank {rank}")
    scale = alpha / rank**0.5 if config.get("use_rslora") else alpha / rank
    return Adapter(scale, {layer: (pair["A"], pair["B"]) for layer, pair in sides.items()})


def _config(folder: Path) -> dict[str, Any]:
    from peft import LoraConfig

    try:
        config: dict[str, Any] = json.loads((folder / ADAPTER_CONFIG).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UnusableModelError(f"{ADAPTER_CONFIG} cannot be read: {error}") from error
    if config.get("peft_type") != "LORA":
        raise UnusableModelError(f"the adapter is of type {config.get('peft_type')!r}; only LORA is merged")
    defaults = LoraConfig().to_dict()
    unknown = [
        name
        for name, value in sorted(config.items())
        if name not in _UNDERSTOOD and value and value != defaults.get(name)
    ]
    if unknown:
        raise UnusableModelError(f"the adapter sets {', '.join(unknown)}, which is not merged here")
    return config


def _tensors(folder: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(folder / ADAPTER_WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UnusableModelError(f"{ADAPTER_WEIGHTS} cannot be read: {error}") from error


class _Layers:
    """The layers of a model and how each stores its weight, known by building the model without any memory."""

    def __init__(self, base: Path) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM

        check_stored(base)
        try:
            config = AutoConfig.from_pretrained(base, trust_remote_code=False, local_files_only=True)
            with torch.device("meta"):
                self._model: Any = AutoModelForCausalLM.from_config(config)
        except Exception as error:
            # transformers raises every kind here; the text is what helps.
            raise UnusableModelError(f"the base: {config_refusal(error, document(base, CONFIG))}") from error

    def changes(self, adapter: Adapter, folder: Path) -> list[Change]:
        """What the adapter adds to the tensors in `folder`. Raises UnusableModelError where it does not fit them."""
        stored = stored_tensors(folder)
        return [self._change(layer, a, b, adapter.scale, stored) for layer, (a, b) in adapter.pairs.items()]

    def _change(self, layer: str, a: Tensor, b: Tensor, scale: float, stored: Mapping[str, StoredTensor]) -> Change:
        from transformers.pytorch_utils import Conv1D

        try:
            module = self._model.get_submodule(layer)
        except AttributeError:
            raise UnusableModelError(f"the adapter changes {layer}, which the base does not have") from None
        if not isinstance(module, torch.nn.Linear | Conv1D):
            raise UnusableModelError(f"the adapter changes {layer}, which is no linear layer")
        if module is self._model.get_output_embeddings() and self._model.config.tie_word_embeddings:
            raise UnusableModelError(f"the adapter changes {layer}, which shares its weights with the embeddings")
        tensor = stored.get(f"{layer}.weight") or stored.get(f"{layer}.weight".removeprefix(self._prefix))
        if tensor is None:
            raise UnusableModelError(f"the base does not store {layer}.weight under this name")
        if tensor.dtype not in DTYPES:
            raise UnusableModelError(f"{tensor.name} is stored as {tensor.dtype}; only {', '.join(DTYPES)} are merged")
        # Conv1D, GPT-2's linear layer, stores its weight as (inputs, outputs).
        left, right = (a.T, b.T) if isinstance(module, Conv1D) else (b, a)
        if tensor.shape != (left.shape[0], right.shape[1]):
            raise UnusableModelError(f"the adapter of {layer} is for a weight of another shape than {tensor.shape}")
        return Change(tensor, left, right, scale)

    @property
    def _prefix(self) -> str:
        """Which some folders leave out of every name."""
        return f"{self._model.base_model_prefix}."


def _copy(base: Path, target: Path) -> None:
    """The model's files but tensors that nobody loads: of another form of the same weights, which are not merged."""
    loaded = set(weight_files(base))
    for path in sorted(base.rglob("*")):
        inside = path.relative_to(base)
        if path.is_file() and may_belong(str(inside)) and (path.suffix != ".safetensors" or path in loaded):
            copied = target / inside
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copied)


def _copy_tokenizer(adapter: Path, target: Path) -> None:
    for path in adapter.iterdir():
        if path.is_file() and path.name != ADAPTER_CONFIG and path.suffix in (".json", ".jinja", ".model", ".txt"):
            shutil.copyfile(path, target / path.name)
