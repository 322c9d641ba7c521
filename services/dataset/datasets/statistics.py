"""Statistics of a version, in constant memory: lengths in a histogram, repeated rows by a bounded set of hashes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from msgspec import UNSET

from services.dataset.reading.rows import Message, PromptRow, Row

HASHES_KEPT = 1 << 19
"""Some 50 MB at most. Up to this many different rows the count of duplicates is exact."""
_PRECISION_BITS = 7
_PENDING = 1 << 16


@dataclass(frozen=True)
class Lengths:
    """Characters (Unicode code points). `minimum`, `mean` and `maximum` are exact, quantiles within 1 %; 0 if empty."""

    minimum: int = 0
    mean: float = 0.0
    p50: int = 0
    p95: int = 0
    maximum: int = 0


@dataclass(frozen=True)
class RoleStatistics:
    messages: int
    characters: int
    lengths: Lengths


@dataclass(frozen=True)
class Statistics:
    """Of the valid rows. `duplicates` counts rows whose canonical bytes occurred before (an estimate where inexact)."""

    rows: int
    messages: int
    roles: dict[str, RoleStatistics]
    row_lengths: Lengths
    rows_with_system: int
    share_with_system: float
    rows_with_answer: int
    messages_with_reasoning: int
    untrained_messages: int
    """Turns of weight 0."""
    duplicates: int
    duplicates_exact: bool


class Histogram:
    """Lengths in buckets that grow with the value: exact below 256, then 128 buckets to a power of two.

    The quantile's relative error is at most 1/256 (half a bucket).
    """

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self._pending: list[int] = []
        self.count = 0
        self.total = 0
        self._minimum = 0
        self._maximum = 0

    def add(self, values: list[int]) -> None:
        """Gathers values and sorts them into buckets by the thousands: equal ones are then sorted once."""
        self._pending += values
        if len(self._pending) >= _PENDING:
            self.settle()

    def settle(self) -> None:
        """Takes in what was added; to be called before the results are read."""
        values, self._pending = self._pending, []
        if not values:
            return
        counted = Counter(values)
        for value, times in counted.items():
            shift = max(value.bit_length() - _PRECISION_BITS - 1, 0)
            self._buckets[(shift << _PRECISION_BITS) + (value >> shift)] += times
        low, high = min(counted), max(counted)
        self._minimum = min(self._minimum, low) if self.count else low
        self._maximum = max(self._maximum, high)
        self.count += len(values)
        self.total += sum(values)

    def quantile(self, share: float) -> int:
        """The value at rank ceil(share × count): the middle of its bucket, never outside of what was seen."""
        self.settle()
        wanted, passed = max(share * self.count, 1), 0
        for bucket in sorted(self._buckets):
            passed += self._buckets[bucket]
            if passed >= wanted:
                return min(max(_middle(bucket), self._minimum), self._maximum)
        return 0

    def lengths(self) -> Lengths:
        self.settle()
        mean = self.total / self.count if self.count else 0.0
        return Lengths(self._minimum, mean, self.quantile(0.5), self.quantile(0.95), self._maximum)


def _middle(bucket: int) -> int:
    shift = max((bucket >> _PRECISION_BITS) - 1, 0)
    return ((bucket - (shift << _PRECISION_BITS)) << shift) + ((1 << shift) >> 1)


class Duplicates:
    """Counts rows seen before, exactly up to `capacity` different rows.

    Beyond that it keeps only hashes whose lowest bits are zero, one bit more each time the set is full (adaptive
    sampling, Flajolet 1990), and scales the count up. Python's own hash of bytes: 64-bit SipHash under a key that
    differs from process to process, so that nobody can write a file of collisions; chance of one below 1e-5 for ten
    million rows.
    """

    def __init__(self, capacity: int = HASHES_KEPT) -> None:
        self._capacity = capacity
        self._seen: set[int] = set()
        self._repeats: Counter[int] = Counter()
        self._level = 0

    @property
    def exact(self) -> bool:
        return self._level == 0

    @property
    def count(self) -> int:
        return self._repeats.total() << self._level

    def add(self, rows: Iterable[bytes]) -> None:
        hashes = [hash(row) for row in rows]
        if self._level:
            hashes = self._sampled(hashes)
        before = len(self._seen)
        # Repeats within these rows or of earlier ones: only then is it worth looking at each.
        fresh = set(hashes) - self._seen
        if len(fresh) < len(hashes):
            self._count_repeats(hashes, fresh)
        self._seen |= fresh
        if before + len(fresh) > self._capacity:
            self._thin()

    def _count_repeats(self, hashes: list[int], fresh: set[int]) -> None:
        unmet = set(fresh)
        for item in hashes:
            if item in unmet:
                unmet.remove(item)
            else:
                self._repeats[item] += 1

    def _thin(self) -> None:
        while len(self._seen) > self._capacity:
            self._level += 1
            self._seen = set(self._sampled(self._seen))
            kept = set(self._sampled(self._repeats))
            self._repeats = Counter({item: times for item, times in self._repeats.items() if item in kept})

    def _sampled(self, hashes: Iterable[int]) -> list[int]:
        mask = (1 << self._level) - 1
        return [item for item in hashes if not item & mask]


class Collector:
    """Gathers the statistics of canonical rows, batch by batch."""

    def __init__(self, turns: Callable[[Any], Iterable[Message]], duplicates: Duplicates | None = None) -> None:
        self._turns = turns
        self._duplicates = duplicates or Duplicates()
        self._rows = Histogram()
        self._roles: dict[str, Histogram] = {}
        self._with_system = 0
        self._with_answer = 0
        self._with_reasoning = 0
        self._untrained = 0

    def add(self, rows: list[Row], encoded: list[bytes]) -> None:
        by_role: dict[str, list[int]] = {"system": [], "user": [], "assistant": [], "tool": []}
        totals: list[int] = []
        turns = self._turns
        for row in rows:
            total = 0
            for message in turns(row):
                length = len(message.content)
                total += length
                by_role[message.role].append(length)
                if message.reasoning_content is not UNSET:
                    self._with_reasoning += 1
                if message.weight is not UNSET:
                    self._untrained += 1
            totals.append(total)
        for role, lengths in by_role.items():
            if lengths:
                self._roles.setdefault(role, Histogram()).add(lengths)
        self._rows.add(totals)
        # Only the first message of a row may be the system's, so their number is the number of such rows.
        self._with_system += len(by_role["system"])
        if rows and isinstance(rows[0], PromptRow):
            self._with_answer += sum(row.answer is not None for row in rows)  # type: ignore[union-attr]
        self._duplicates.add(encoded)

    def result(self) -> Statistics:
        roles = {role: _of_role(histogram) for role, histogram in sorted(self._roles.items())}
        self._rows.settle()
        rows = self._rows.count
        return Statistics(
            rows=rows,
            messages=sum(role.messages for role in roles.values()),
            roles=roles,
            row_lengths=self._rows.lengths(),
            rows_with_system=self._with_system,
            share_with_system=self._with_system / rows if rows else 0.0,
            rows_with_answer=self._with_answer,
            messages_with_reasoning=self._with_reasoning,
            untrained_messages=self._untrained,
            duplicates=self._duplicates.count,
            duplicates_exact=self._duplicates.exact,
        )


def _of_role(histogram: Histogram) -> RoleStatistics:
    lengths = histogram.lengths()
    return RoleStatistics(histogram.count, histogram.total, lengths)
