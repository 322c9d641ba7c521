"""What verl does to share a batch out among slots, left out where there is one. Hooks: see hooks.py."""

from __future__ import annotations

from typing import Any


def whole_chunks(module: Any) -> None:
    """verl takes a batch apart and puts it together again where it is to be shared out to one."""
    chunk = module.chunk_tensordict
    module.chunk_tensordict = lambda td, chunks: [td] if chunks == 1 else chunk(td, chunks)


def partitions(module: Any) -> None:
    """verl shares a batch out among slots by a search over its lengths; for one slot there is nothing to find."""
    search = module.get_seqlen_balanced_partitions

    def found(seqlen_list: Any, k_partitions: int, equal_size: bool) -> list[list[int]]:
        if k_partitions == 1 and len(seqlen_list):
            return [list(range(len(seqlen_list)))]
        return search(seqlen_list, k_partitions, equal_size)

    module.get_seqlen_balanced_partitions = found
