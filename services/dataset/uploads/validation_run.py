"""The running totals of one validation, and where its rows go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from services.dataset.containers.batches import Batch, Broken, Lines, Texts, Values
from services.dataset.datasets.chunks import ChunkWriter
from services.dataset.datasets.statistics import Collector
from services.dataset.reading.findings import Findings, Problems
from services.dataset.reading.row_reader import Result, RowReader
from services.dataset.reading.rows import Row
from services.dataset.uploads.options import Split

MAX_KEPT_KEYS = 100
OTHER_KEYS = "(other keys)"
Skip: TypeAlias = Callable[[Problems, "bytes | dict[str, Any] | None"], None]


@dataclass(frozen=True)
class Part:
    """Rows of one version."""

    writer: ChunkWriter
    collector: Collector

    def add(self, rows: list[Row], encoded: list[bytes]) -> None:
        self.collector.add(rows, encoded)
        self.writer.add(encoded)


class Run:
    """Reads batch after batch. With a `split` some of the rows go to `held_out`."""

    def __init__(
        self, reader: RowReader, findings: Findings, kept: Part, held_out: Part | None, split: Split | None, skip: Skip
    ) -> None:
        self._reader, self._split, self._skip = reader, split, skip
        self.findings, self.kept, self.held_out = findings, kept, held_out
        self.rows = 0
        self.spellings: Counter[str] = Counter()
        self.kept_keys: Counter[str] = Counter()

    def add(self, batch: Batch) -> None:
        if isinstance(batch, Broken):
            self.rows += 1
            problems = Problems(self.findings, self.rows, batch.line)
            problems.add("", batch.reason, batch.message)
            self._skip(problems, None)
            return
        result = self._read(batch)
        self.rows += result.seen
        self.spellings.update(result.spellings)
        self._count_keys(result.kept_keys)
        if self._split is None or self.held_out is None:
            self.kept.add(result.rows, result.encoded)
        else:
            self._divide(result, self._split, self.held_out)

    def _divide(self, result: Result, split: Split, held_out: Part) -> None:
        out = [split.holds_out(row) for row in result.rows]
        for part, wanted in ((self.kept, False), (held_out, True)):
            chosen = [index for index, is_out in enumerate(out) if is_out is wanted]
            part.add([result.rows[index] for index in chosen], [result.encoded[index] for index in chosen])

    def _count_keys(self, counts: Counter[str]) -> None:
        """Many names, but not as many as a hostile file can hold."""
        for key, count in counts.items():
            known = key in self.kept_keys or len(self.kept_keys) < MAX_KEPT_KEYS
            self.kept_keys[key if known else OTHER_KEYS] += count

    def _read(self, batch: Lines | Texts | Values) -> Result:
        if isinstance(batch, Lines):
            return self._reader.lines(batch, self.rows + 1)
        if isinstance(batch, Texts):
            return self._reader.texts(batch, self.rows + 1)
        return self._reader.values(batch, self.rows + 1)
