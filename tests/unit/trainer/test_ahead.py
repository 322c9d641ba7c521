"""Batches that are made ahead, and where a run that is resumed goes on."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from torch.utils.data import Dataset, DistributedSampler

from services.trainer.verl.trainers.prefetch import PrefetchingLoader


class Rows(Dataset):
    def __init__(self, broken: int = -1) -> None:
        self.asked: list[int] = []
        self.last_asked = threading.Event()
        self._broken = broken

    def __len__(self) -> int:
        return 8

    def __getitem__(self, item: int) -> int:
        if item == self._broken:
            raise ValueError("a broken row")
        self.asked.append(item)
        if len(self.asked) == 4:
            self.last_asked.set()
        return item


def loader(rows: Rows) -> PrefetchingLoader:
    sampler: Any = DistributedSampler(rows, num_replicas=1, rank=0, shuffle=True, seed=3)
    return PrefetchingLoader(dataset=rows, batch_size=2, sampler=sampler, collate_fn=list, drop_last=True)


def test_the_next_batch_is_made_while_the_last_one_is_used() -> None:
    rows = Rows()
    batches = iter(loader(rows))
    first = next(batches)
    assert rows.last_asked.wait(timeout=10)
    assert rows.asked[:2] == first and len(rows.asked) == 4


@pytest.mark.parametrize("taken", [1, 2, 4])
def test_a_state_is_that_of_the_batch_handed_out_last(taken: int) -> None:
    whole = [list(batch) for batch in loader(Rows())]
    assert sorted(row for batch in whole for row in batch) == list(range(8))
    first = loader(Rows())
    batches = iter(first)
    assert [next(batches) for _ in range(taken)] == whole[:taken]
    state = first.state_dict()
    assert state["_num_yielded"] == taken
    resumed = loader(Rows())
    resumed.load_state_dict(state)
    assert list(resumed) == whole[taken:]


def test_every_pass_gives_every_row() -> None:
    made = loader(Rows())
    assert list(made) == list(made)
    assert made.state_dict()["_num_yielded"] == 4


def test_an_error_of_a_row_reaches_the_loop() -> None:
    with pytest.raises(ValueError, match="a broken row"):
        list(loader(Rows(broken=5)))
