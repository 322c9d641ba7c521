"""Whether a model's tensors are those of its configuration, told by names and shapes with the key that is wrong.

transformers fills what is missing with random numbers, drops what is left over, and takes its own default for a size
that the configuration leaves out: so the memory that a model takes is found here from the headers of its tensor files
and a model without storage, before any is allocated.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from services.models.folder import CONFIG, UnusableModelError

Shape = tuple[int, ...]
# Of what the files hold; more of it comes from no tied or converted tensor.
_MOST_GROWTH = 2
_MOST_NAMED = 3
_LAYER = re.compile(r"(?P<stack>.*?)\.(?P<index>\d+)\.")
_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_SIZE = re.compile(r".*(hidden|inter|embed|embd|vocab|head|size|dim|inner|ffn|rank|experts|labels).*|d_\w+")
_HEADS = ("num_attention_heads", "num_key_value_heads", "n_head")


@dataclass(frozen=True)
class Difference:
    """`missing` and `unused` are names of tensors; `mismatched` has a name, the shape in the files and the model's."""

    missing: tuple[str, ...] = ()
    mismatched: tuple[tuple[str, Shape, Shape], ...] = ()
    unused: tuple[str, ...] = ()


class Settings:
    """What a model was built of: the configuration with transformers' defaults, and the keys that the file has."""

    def __init__(self, config: Any, document: Mapping[str, Any]) -> None:
        text = document.get("text_config")
        self._written = {**document, **(text if isinstance(text, dict) else {})}
        made = config.get_text_config() if hasattr(config, "get_text_config") else config
        self.architecture = (document.get("architectures") or [document.get("model_type")])[0]
        self._values = {
            key: value
            for key, value in {**config.to_dict(), **made.to_dict()}.items()
            if type(value) is int and _SIZE.fullmatch(key) and not key.endswith("_id")
        }
        self._counts = [key for key in _LAYER_COUNTS if isinstance(getattr(made, key, None), int)]
        self.layers: int | None = getattr(made, self._counts[0]) if self._counts else None

    @property
    def layers_found(self) -> str:
        key = next((key for key in self._counts if key in self._written), self._counts[0])
        return f"{key} is {self.layers}" if key in self._written else f"{key} is missing, {self.layers} by default"

    def behind(self, sizes: Collection[int]) -> list[str]:
        """The keys that give a layer one of these sizes, each with its value."""
        keys = [key for key, value in self._values.items() if value in sizes]
        if not keys and (width := self._values.get("head_dim")):
            heads = [key for key in _HEADS if self._values.get(key, 0) * width in sizes]
            keys = [*heads[:1], "head_dim"] if heads else []
        missing = [key for key in keys if key not in self._written]
        told = (missing or keys)[:_MOST_NAMED]
        return [f"{key} {self._values[key]}{'' if key in self._written else ' by default, missing'}" for key in told]


def compare(expected: Mapping[str, Shape], stored: Mapping[str, Shape], prefix: str) -> Difference:
    """The difference by name; some folders leave the `prefix` of the base model out of every name, some put it in."""
    by_name = {name.removeprefix(f"{prefix}."): (name, shape) for name, shape in stored.items()}
    missing, mismatched = [], []
    for name, shape in expected.items():
        found = by_name.get(name.removeprefix(f"{prefix}."))
        if found is None:
            missing.append(name)
        elif found[1] != shape:
            mismatched.append((found[0], found[1], shape))
    return Difference(tuple(missing), tuple(mismatched))


def check_before(model: Any, stored: Mapping[str, Shape], settings: Settings) -> None:
    """Check that loading takes the memory of what is stored, by a `model` on the meta device. Raises
    UnusableModelError."""
    expected = sum(parameter.numel() for parameter in model.parameters())
    if expected <= _MOST_GROWTH * sum(map(prod, stored.values())):
        return
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    difference = compare(shapes, stored, model.base_model_prefix)
    raise UnusableModelError(_words(difference, stored, settings, len(shapes)))


def check_after(difference: Difference, stored: Mapping[str, Shape], settings: Settings, total: int) -> None:
    """Check what transformers told of a model of `total` tensors that it loaded. Raises UnusableModelError."""
    if difference.missing or difference.mismatched:
        raise UnusableModelError(_words(difference, stored, settings, total))
    dropped = _layers(difference.unused)
    # What is left over besides, buffers of older versions or heads of other tasks, is left alone.
    if settings.layers is not None and any(index >= settings.layers for index in dropped):
        raise UnusableModelError(_too_few(settings, max(dropped) + 1))


def _words(difference: Difference, stored: Mapping[str, Shape], settings: Settings, total: int) -> str:
    if difference.mismatched:
        return _mismatch(difference, settings)
    missing = sorted(difference.missing)
    held = _layers(stored)
    if settings.layers is not None and held and all(index > max(held) for index in _each_layer(missing)):
        return (
            f"{CONFIG}'s {settings.layers_found}, and the weights have {max(held) + 1} layers; write"
            " the number that they have, or copy the rest of the weights"
        )
    return (
        f"the weights lack {len(missing)} of the {total} tensors that {CONFIG} asks for ({settings.architecture}):"
        f" {_list(missing)}; copy all files of the model, or correct architectures and sizes"
    )


def _mismatch(difference: Difference, settings: Settings) -> str:
    name, found, wanted = sorted(difference.mismatched)[0]
    # Where it is one size of several that differs, it is that one's key.
    sizes = {size for place, size in enumerate(wanted) if len(found) != len(wanted) or found[place] != size}
    keys = settings.behind(sizes)
    of = f" ({' or '.join(keys)})" if keys else ""
    more = len(difference.mismatched) - 1
    others = f", {more} more tensors likewise" if more else ""
    return (
        f"{name} is {_shape(found)} in the weights and {_shape(wanted)} by {CONFIG}{of}{others}; write the sizes that"
        " the weights were trained with"
    )


def _too_few(settings: Settings, stored: int) -> str:
    return (
        f"{CONFIG}'s {settings.layers_found}, and the weights have {stored} layers, of which the"
        f" last would be dropped; write {stored}, or save a model without them"
    )


def _layers(names: Iterable[str]) -> set[int]:
    return {int(found["index"]) for name in names if (found := _LAYER.match(name))}


def _each_layer(names: Iterable[str]) -> list[float]:
    """The layer of each; one that belongs to none is before all."""
    return [int(found["index"]) if (found := _LAYER.match(name)) else -1 for name in names]


def _shape(shape: Shape) -> str:
    return " × ".join(map(str, shape)) or "a single number"


def _list(names: list[str]) -> str:
    rest = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {rest} more" if rest > 0 else "")
