"""Micro-batches of rows of similar length.

Without packed sequences (flash attention's) every row of a forward pass is padded to the longest. verl cuts a slot's
rows up as they come; here they are sorted first, so that little is padded. The loss is a sum over all rows of the step,
whatever passes they are in.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
from verl.utils import tensordict_utils as tu
from verl.utils.seqlen_balancing import restore_dynamic_batch

# A field that only rows of pairs have: two of them belong together.
OF_PAIRS = "reference_logp"


def sort_rows(module: Any) -> None:
    """Change verl's two functions that cut rows up and put what became of them together again."""
    cut, put_together = module.prepare_micro_batches, module.postprocess_batch_func

    def prepare_micro_batches(data: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        if not _padded(data) or len(data) <= data["micro_batch_size_per_gpu"]:
            return cut(data, *args, **kwargs)
        group = 2 if OF_PAIRS in set(data.keys()) else 1
        order = by_length(data["input_ids"].offsets().diff().tolist(), group)
        micro_batches, _ = cut(tu.index_select_tensor_dict(data, torch.tensor(order)), *args, **kwargs)
        size = len(order) // len(micro_batches)
        return micro_batches, [order[start : start + size] for start in range(0, len(order), size)]

    def postprocess_batch_func(output_lst: Any, indices: Any, data: Any) -> Any:
        output = put_together(output_lst=output_lst, indices=indices, data=data)
        if indices is not None and _padded(data):
            for key, value in output["model_output"].items():
                output["model_output"][key] = restore_dynamic_batch(value, indices)
        return output

    module.prepare_micro_batches, module.postprocess_batch_func = prepare_micro_batches, postprocess_batch_func


def by_length(lengths: list[int], group: int) -> list[int]:
    """The order of the rows by length, longest first: what a pass needs at most is seen at once. Of `group` rows that
    stay together the longest counts.
    """
    firsts: Iterable[int] = range(0, len(lengths), group)
    ordered = sorted(firsts, key=lambda first: -max(lengths[first : first + group]))
    return list(chain.from_iterable(range(first, first + group) for first in ordered))


def _padded(data: Any) -> bool:
    """Whether rows are cut up by number, and padded. verl takes both for the opposite where nothing is said."""
    dynamic = tu.get_non_tensor_data(data=data, key="use_dynamic_bsz", default=True)
    packed = tu.get_non_tensor_data(data=data, key="use_remove_padding", default=True)
    grouped = tu.get_non_tensor_data(data=data, key="force_group_size", default=1)
    return bool(not dynamic and not packed and grouped == 1)
