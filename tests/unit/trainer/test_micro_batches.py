"""Rows cut up by length, and put together again as they were."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from verl.utils import tensordict_utils as tu
from verl.workers.engine import utils as verl_utils

from services.trainer.algorithms.verl_config import rows_a_pass
from services.trainer.verl.patches.micro_batches import by_length, sort_rows
from services.trainer.verl.patches.one_slot import partitions, whole_chunks

LENGTHS = [3, 9, 4, 1, 8, 2, 7, 7]


def batch(size: int, **fields: Any) -> Any:
    rows = [torch.full((length,), place) for place, length in enumerate(LENGTHS)]
    nested = torch.nested.as_nested_tensor(rows, layout=torch.jagged)
    settings = {"use_dynamic_bsz": False, "use_remove_padding": False, "micro_batch_size_per_gpu": size}
    return tu.get_tensordict({"input_ids": nested, **fields.pop("tensors", {})}, {**settings, **fields})


@pytest.fixture
def cutting() -> Any:
    """verl's two functions, changed as in a training worker. A copy of their module: other tests of this process may
    have changed verl's own.
    """
    spec = importlib.util.spec_from_file_location("copy_of_verl_utils", verl_utils.__file__)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sort_rows(module)
    return module


def lengths(micro_batches: list[Any]) -> list[list[int]]:
    return [one["input_ids"].offsets().diff().tolist() for one in micro_batches]


def test_rows_of_similar_length_share_a_pass(cutting: Any) -> None:
    micro_batches, _ = cutting.prepare_micro_batches(data=batch(2))
    assert lengths(micro_batches) == [[9, 8], [7, 7], [4, 3], [2, 1]]


def test_what_becomes_of_them_is_in_the_order_of_the_rows(cutting: Any) -> None:
    data = batch(2)
    micro_batches, indices = cutting.prepare_micro_batches(data=data)
    outputs = [{"model_output": {"log_probs": one["input_ids"] * 2}} for one in micro_batches]
    together = cutting.postprocess_batch_func(output_lst=outputs, indices=indices, data=data)
    for given, found in zip(data["input_ids"].unbind(), together["model_output"]["log_probs"].unbind(), strict=True):
        assert torch.equal(found, given * 2)


def test_the_two_rows_of_a_pair_stay_together(cutting: Any) -> None:
    data = batch(4, tensors={"reference_logp": torch.arange(8.0)})
    micro_batches, _ = cutting.prepare_micro_batches(data=data)
    assert lengths(micro_batches) == [[3, 9, 8, 2], [7, 7, 4, 1]]
    assert micro_batches[0]["reference_logp"].tolist() == [0, 1, 4, 5]


def test_packed_rows_and_single_passes_are_left_alone(cutting: Any) -> None:
    assert lengths(cutting.prepare_micro_batches(data=batch(8))[0]) == [LENGTHS]
    packed = batch(4)
    tu.assign_non_tensor(packed, use_remove_padding=True)
    assert lengths(cutting.prepare_micro_batches(data=packed)[0]) == [LENGTHS[:4], LENGTHS[4:]]


def test_a_batch_for_one_slot_is_neither_searched_nor_taken_apart() -> None:
    def refuse(*_: object, **__: object) -> Any:
        raise AssertionError

    module: Any = SimpleNamespace(get_seqlen_balanced_partitions=refuse, chunk_tensordict=refuse)
    partitions(module)
    whole_chunks(module)
    assert module.get_seqlen_balanced_partitions([5, 1, 3], k_partitions=1, equal_size=True) == [[0, 1, 2]]
    data = batch(8)
    assert module.chunk_tensordict(data, 1)[0] is data
    with pytest.raises(AssertionError):
        module.get_seqlen_balanced_partitions([5, 1, 3, 4], k_partitions=2, equal_size=True)


def test_equal_rows_keep_their_order() -> None:
    assert by_length([2, 2, 2, 2], 1) == [0, 1, 2, 3]
    assert by_length([1, 1, 1, 5], 2) == [2, 3, 0, 1]


@pytest.mark.parametrize(("rows", "on_cpu"), [(64, 16), (8, 8), (100, 20), (37, 37), (1, 1), (512, 16)])
def test_a_pass_takes_a_divisor_of_the_rows(rows: int, on_cpu: int) -> None:
    assert rows_a_pass(rows, "cpu", 64) == on_cpu
    assert rows % rows_a_pass(rows, "cuda", 64) == 0
