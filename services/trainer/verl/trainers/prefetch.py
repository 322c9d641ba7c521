"""Batches made while the training workers compute."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from torchdata.stateful_dataloader import StatefulDataLoader


class PrefetchingLoader(StatefulDataLoader):
    """A loader without workers that renders the next batch in a thread while the last one is trained on.

    verl's loops are sequential, and its own loaders fork processes for this. `state_dict` is that of the batch that was
    handed out last, not of the one that was made ahead of it: where a run is resumed nothing is skipped.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs, num_workers=0)
        self._handed_out: dict[str, Any] | None = None
        # Of the batch handed out last: how long the loop waited for it, and when (monotonic) it got it.
        self.waited_seconds = 0.0
        self.handed_out_at = 0.0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        batches: Iterator[Any] = super().__iter__()

        def fetch() -> tuple[Any, dict[str, Any]] | None:
            batch = next(batches, None)
            return None if batch is None else (batch, super(PrefetchingLoader, self).state_dict())

        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="ahead") as thread:
            upcoming = thread.submit(fetch)
            while True:
                asked_at = time.monotonic()
                if (found := upcoming.result()) is None:
                    return
                upcoming = thread.submit(fetch)
                batch, self._handed_out = found
                self.handed_out_at = time.monotonic()
                self.waited_seconds = self.handed_out_at - asked_at
                yield batch

    def state_dict(self) -> dict[str, Any]:
        return self._handed_out or super().state_dict()
