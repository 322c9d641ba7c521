"""From raw rows to canonical ones: whole batches on the fast path, single rows on the explaining path."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from services.dataset.containers.batches import Texts, Values
from services.dataset.findings import Findings, Problems, Reason
from services.dataset.jsontext import key_twice, parse
from services.dataset.limits import Limits
from services.dataset.rows import Row, encode
from services.dataset.shapes import DECODE_ERRORS, Shape, Shapes
from services.dataset.spellings import Format, canonical

_quotes = operator.methodcaller("count", b'"')


@dataclass
class Result:
    """The valid rows of a batch, in order, and how many rows there were."""

    rows: list[Row] = field(default_factory=list)
    encoded: list[bytes] = field(default_factory=list)
    spellings: Counter[str] = field(default_factory=Counter)
    seen: int = 0
    sources: list[Any] = field(default_factory=list)
    """What the fast path decoded, row by row."""

    def add(self, spelling: str, row: Row, encoded: bytes) -> None:
        self.rows.append(row)
        self.encoded.append(encoded)
        self.spellings[spelling] += 1


class RowReader:
    """Reads the rows of one file; what it learns about their shape carries over from batch to batch."""

    def __init__(self, entry: type[Format], findings: Findings, limits: Limits) -> None:
        self._entry = entry
        self._findings = findings
        self._limit = limits.row_bytes
        self._shapes = Shapes(entry)

    def texts(self, batch: Texts, first_row: int) -> Result:
        """Rows written as JSON. `first_row` is the number of the first, from 1; blank texts are not rows."""
        shape = self._shapes.first
        if shape:
            result = self._all(shape, batch.texts, lambda: map(shape.decode, batch.texts))
            if result and _same_quotes(shape, batch.texts, result):
                return result
        result = Result()
        for index, text in enumerate(batch.texts):
            if text.strip():
                problems = Problems(self._findings, first_row + result.seen, batch.line(index))
                result.seen += 1
                self._text(text, problems, result)
        return result

    def values(self, batch: Values, first_row: int) -> Result:
        """Rows that a typed container has already decoded."""
        shape = self._shapes.first
        if shape:
            result = self._all(shape, batch.values, lambda: shape.convert_all(batch.values))
            if result:
                return result
        result = Result(seen=len(batch.values))
        for index, value in enumerate(batch.values):
            problems = Problems(self._findings, first_row + index, batch.line(index))
            self._value(value, problems, result)
        return result

    def _all(self, shape: Shape, raw: list[Any], decode: Callable[[], Iterable[Any]]) -> Result | None:
        """The whole batch in one shape, or None when one row is not."""
        try:
            sources = list(decode())
            rows = [row for row in map(shape.canonical, sources) if row is not None]
            if len(rows) < len(sources):
                return None
            encoded = list(map(encode, rows))
        except DECODE_ERRORS:
            return None
        if encoded and max(map(len, encoded)) > self._limit:
            return None
        return Result(rows, encoded, Counter({shape.spelling.name: len(raw)}), len(raw), sources)

    def _text(self, text: bytes, problems: Problems, result: Result) -> None:
        for shape in self._shapes:
            one = self._all(shape, [text], lambda shape=shape: [shape.decode(text)])
            if one:
                if not _same_quotes(shape, [text], one) and key_twice(text, problems):
                    return
                self._shapes.fitted(shape)
                result.add(shape.spelling.name, one.rows[0], one.encoded[0])
                return
        value = parse(text, problems)
        if not problems.found:
            self._explain(value, problems, result)

    def _value(self, value: dict[str, Any], problems: Problems, result: Result) -> None:
        for shape in self._shapes:
            one = self._all(shape, [value], lambda shape=shape: shape.convert_all([value]))
            if one:
                self._shapes.fitted(shape)
                result.add(shape.spelling.name, one.rows[0], one.encoded[0])
                return
        self._explain(value, problems, result)

    def _explain(self, value: Any, problems: Problems, result: Result) -> None:
        found = canonical(self._entry, value, problems)
        if found is None:
            return
        spelling, row = found
        try:
            encoded = encode(row)
        except UnicodeEncodeError:
            problems.add("metadata", Reason.INVALID_UTF8, "holds text that is not valid UTF-8; save the file as UTF-8")
            return
        if len(encoded) > self._limit:
            problems.add("", Reason.ROW_TOO_LONG, f"takes {len(encoded)} bytes; at most {self._limit}")
            return
        self._shapes.learn(spelling, value, row)
        result.add(spelling.name, row, encoded)


def _same_quotes(shape: Shape, texts: list[bytes], result: Result) -> bool:
    """Whether no row has a key twice, which decoding into structs would not show: then its text has more quotation
    marks than what was decoded. (Fewer, where the text spells marks as `\\u0022`: such rows are looked at singly.)"""
    # Canonical rows that keep their keys gain one: `metadata`, around the extras. With an extra left out for being
    # null, or metadata there before, the numbers differ and the second comparison decides.
    surplus = 2 if shape.extras else 0
    if shape.spelling.keeps_keys and _quotes_differ_by(surplus, texts, result.encoded):
        return True
    return _quotes_differ_by(0, texts, [encode(source) for source in result.sources])


def _quotes_differ_by(surplus: int, texts: list[bytes], others: list[bytes]) -> bool:
    return set(map(operator.sub, map(_quotes, others), map(_quotes, texts))) == {surplus}
