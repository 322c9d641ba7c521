"""Tensors where they lie: found by the headers of a model's safetensors files, and changed in place."""

from __future__ import annotations

import json
import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from services.models.folder import UnusableModelError, shards
from services.models.refusals import quoted

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
# Elements that are in memory at a time, in fp32 and once more as they are stored.
_PART = 1 << 22
# As safetensors has it.
_LARGEST_HEADER_BYTES = 100_000_000


@dataclass(frozen=True)
class StoredTensor:
    """`offset` in bytes of the file; `dtype` as safetensors calls it, `BF16` for example."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers loads: one, or those of the index. Raises UnusableModelError."""
    return [folder / name for name in shards(folder)]


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """By name. Raises UnusableModelError for a file that is missing, cut short or no safetensors file."""
    return {tensor.name: tensor for path in weight_files(folder) for tensor in header(path)}


def update(tensor: StoredTensor, left: Tensor, right: Tensor, scale: float) -> None:
    """Write tensor + scale·left·right in its place, computed in fp32, some rows at a time.

    Raises UnusableModelError where the type has no such numbers.
    """
    dtype, (rows, columns) = DTYPES[tensor.dtype], tensor.shape
    step = max(1, _PART // columns)
    with tensor.path.open("r+b") as file:
        for first in range(0, rows, step):
            count = min(step, rows - first)
            at = tensor.offset + first * columns * dtype.itemsize
            data = bytearray(os.pread(file.fileno(), count * columns * dtype.itemsize, at))
            part = torch.frombuffer(data, dtype=dtype).view(count, columns).float()
            merged = torch.addmm(part, left[first : first + count], right, alpha=scale).to(dtype)
            if not merged.isfinite().all():
                raise UnusableModelError(f"merged, {tensor.name} holds what is no number in {tensor.dtype}")
            file.seek(at)
            file.write(merged.contiguous().view(torch.uint8).numpy().tobytes())


def header(path: Path) -> list[StoredTensor]:
    """The format: eight bytes that tell the header's length, JSON, then the tensors end to end."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            begin = 8 + length
            if begin > path.stat().st_size or length > _LARGEST_HEADER_BYTES:
                raise ValueError("it is cut short")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        found = [_tensor(path, name, entry, begin) for name, entry in header.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        message = f"{path.name} is cut short or damaged, or no safetensors file; copy it again{quoted(error)}"
        raise UnusableModelError(message) from error
    return found


def _tensor(path: Path, name: str, entry: dict, begin: int) -> StoredTensor:
    """Raises ValueError, KeyError, TypeError for what the format does not allow."""
    first, last = entry["data_offsets"]
    if begin + last > path.stat().st_size or first > last:
        raise ValueError(f"it is cut short in {name}")
    tensor = StoredTensor(path, name, entry["dtype"], tuple(entry["shape"]), begin + first)
    dtype = DTYPES.get(tensor.dtype)
    if dtype is not None and last - first != math.prod(tensor.shape) * dtype.itemsize:
        raise ValueError(f"{name} has another size than its shape")
    return tensor
