"""Whether an update changed any weight that is trained: a gradient alone does not say so.

A frozen adapter, a learning rate of 0, or steps that bf16 rounds away leave the weights as they were. Each worker sums
the bits of its own shards after every update; that costs one pass over the weights, 0.1 s for 135M fp32 weights on a
CPU. Another sum is a change; two changes that cancel out to the bit are as good as impossible over several steps.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from services.trainer.verl.metrics import WEIGHTS_CHANGED

_WORD = 8


def watch_updates(module: Any) -> None:
    """Make verl's FSDP engine report with each update, beside the gradient's norm, 1 where it changed a weight."""
    train = module.FSDPEngine.train_batch

    def train_and_compare(engine: Any, *args: Any, **kwargs: Any) -> Any:
        before = vars(engine).get("_rlhf_bits")
        if before is None:
            before = bits(trained(engine.module))
        outputs = train(engine, *args, **kwargs)
        engine._rlhf_bits = bits(trained(engine.module))
        if engine.is_mp_src_rank_with_outputs():
            # A list, as every metric of verl's that has one value for each micro batch.
            outputs["metrics"][WEIGHTS_CHANGED] = [float(engine._rlhf_bits != before)]
        return outputs

    module.FSDPEngine.train_batch = train_and_compare


def trained(module: torch.nn.Module) -> Iterable[torch.Tensor]:
    return (parameter for parameter in module.parameters() if parameter.requires_grad)


@torch.no_grad()
def bits(tensors: Iterable[torch.Tensor]) -> int:
    """The sum of the tensors' bits as 64-bit integers, modulo 2⁶⁴, of this worker's shards."""
    total = 0
    for tensor in tensors:
        local: Any = tensor.to_local() if hasattr(tensor, "to_local") else tensor  # type: ignore[attr-defined]
        flat = local.detach().contiguous().reshape(-1).view(torch.uint8)
        if flat.storage_offset() % _WORD:
            flat = flat.clone()
        whole = flat.numel() // _WORD * _WORD
        total += int(flat[:whole].view(torch.int64).sum()) + int(flat[whole:].to(torch.int64).sum())
    return total % 2**64
