"""What a job's judges have cost, kept beside the job: neither a second attempt nor a second process forgets it."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from services.rewards import RewardError

# More than a total ever takes.
_RECORD_BYTES = 256


@dataclass(frozen=True)
class Spent:
    """Tokens, and money in the currency of the prices."""

    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            self.input_tokens + other.input_tokens, self.output_tokens + other.output_tokens, self.cost + other.cost
        )


@dataclass(frozen=True)
class Bill:
    """How a request is paid for: what it may cost at most, and what a reply to it did cost."""

    ledger: CostLedger
    most: Spent
    count: Callable[[Any], Spent]


class CostLedger:
    """Counts in a file, or in memory where `path` is empty. A request that might pass the cap is not made: `reserve`
    what it may cost at most, then `settle` for what it did cost. Any thread may call."""

    def __init__(self, path: str, cost_cap: float | None) -> None:
        self._path = Path(path) if path else None
        self._cap = cost_cap
        self._lock = threading.Lock()
        self._reserved = 0.0
        self._in_memory = Spent()

    def spent(self) -> Spent:
        if self._path is None:
            return self._in_memory
        try:
            return _read(self._path.read_bytes())
        except FileNotFoundError:
            return Spent()

    def reserve(self, cost: float) -> None:
        """Raises RewardError where what is spent, what is under way and this together pass the cap."""
        with self._lock:
            spent = self.spent().cost
            if self._cap is not None and spent + self._reserved + cost > self._cap:
                message = f"the next request may cost {cost:.6g}, of the cap of {self._cap:.6g} {spent:.6g} are spent"
                remedy = "raise cost_cap, and start the job again from its last checkpoint"
                raise RewardError(message, reason="REWARD_COST_CAP", remedy=remedy)
            self._reserved += cost

    def settle(self, reserved: float, spent: Spent) -> None:
        """Give back what was reserved, and count what was spent."""
        with self._lock:
            self._reserved -= reserved
            if spent == Spent():
                return
            if self._path is None:
                self._in_memory += spent
                return
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                # The side process of a run writes too.
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                total = _read(os.pread(descriptor, _RECORD_BYTES, 0)) + spent
                # In one write, and never shorter: who reads meanwhile, or dies, finds the old total or the new one.
                os.pwrite(descriptor, msgspec.json.encode(total).ljust(_RECORD_BYTES), 0)
            finally:
                os.close(descriptor)


def _read(data: bytes) -> Spent:
    return msgspec.json.decode(data or b"{}", type=Spent)
