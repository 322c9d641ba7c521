"""What tells one adapter from every other: a few sums of each of its tensors, and the scale that it is applied with.

Answers tell adapters apart only where they differ by more than rounding makes, which those of two neighbouring steps
need not. The sums do: over the n numbers x of a tensor Σx, Σ|x|, and Σx·w with w rising from -1 to 1, so that numbers
in other places make another sum.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from services.models.merge import ADAPTER_WEIGHTS, read_adapter
from services.models.probe import AdapterSums
from services.models.tensor_files import DTYPES, header

_SHOWN = 3


def sums(tensor: Tensor) -> list[float]:
    values = tensor.detach().double().flatten()
    places = torch.linspace(-1, 1, values.numel(), dtype=torch.float64, device=values.device)
    return [values.sum().item(), values.abs().sum().item(), (values * places).sum().item()]


def of_model(module: Any) -> AdapterSums | None:
    """Of a peft model, its shards gathered: every worker takes part. None where it has no adapter."""
    from peft.tuners.lora import LoraLayer

    tensors, scales = {}, set()
    for name, layer in module.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        plain = name.removeprefix("base_model.model.")
        for side in ("A", "B"):
            for adapter, linear in getattr(layer, f"lora_{side}").items():
                weight = linear.weight
                whole: Any = weight.full_tensor() if hasattr(weight, "full_tensor") else weight
                tensors[f"{plain}.lora_{side}"] = sums(whole)
                scales.add(float(layer.scaling[adapter]))
    return AdapterSums(tensors, sorted(scales)) if tensors else None


def check(folder: Path, trained: AdapterSums) -> None:
    """Raises ValueError where the adapter in `folder` is not the one that was trained."""
    saved = read_adapter(folder)
    if trained.scales != [saved.scale]:
        scales = _listed(trained.scales)
        raise ValueError(f"the adapter was trained with the scale {scales}, and is saved with {saved.scale}")
    found = {
        f"{layer}.lora_{side}": sums(tensor)
        for layer, pair in saved.pairs.items()
        for side, tensor in zip("AB", pair, strict=True)
    }
    # A number that is rounded to the type it is stored in is off by half of this at most.
    relative = max(torch.finfo(DTYPES[tensor.dtype]).eps for tensor in header(folder / ADAPTER_WEIGHTS))
    different = [
        name
        for name in sorted(found.keys() | trained.tensors.keys())
        if not _same(found.get(name), trained.tensors.get(name), relative)
    ]
    if different:
        raise ValueError(
            f"the adapter that was saved is not the one that was trained: {len(different)} of"
            f" {len(found.keys() | trained.tensors.keys())} tensors differ, {_listed(different[:_SHOWN])} among them"
        )


def _same(one: list[float] | None, other: list[float] | None, relative: float) -> bool:
    if one is None or other is None:
        return False
    allowed = relative * other[1]
    return all(abs(a - b) <= allowed for a, b in zip(one, other, strict=True))


def _listed(values: list[Any]) -> str:
    return ", ".join(map(str, values))
