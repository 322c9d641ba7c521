"""From raw rows to canonical ones: whole batches on the fast path, single rows on the explaining path."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from services.dataset.containers.batches import Lines, Texts, Values
from services.dataset.reading.byte_counts import count, count_above
from services.dataset.reading.fast_decode import DECODE_ERRORS, Canonical, Shape, Shapes
from services.dataset.reading.field_mapping import FieldMapping
from services.dataset.reading.findings import Findings, Problems, Reason
from services.dataset.reading.input_layouts import Format, canonical
from services.dataset.reading.json_text import key_twice, parse
from services.dataset.reading.limits import Limits
from services.dataset.reading.rows import Row, encode

# So few rows are looked at one by one when all of them together would not do.
_SINGLY = 8
_QUOTE, _SPACE = ord('"'), ord(" ")
# What encoding adds to a row whose extra keys become metadata.
_WRAPPING = len('"metadata":{},') - len(",")


# As many of the rows that are no known spelling are kept for a suggestion.
MAX_UNRECOGNISED = 5
OnInvalid = Callable[[Problems, "bytes | dict[str, Any]"], None]
"""Takes a row that is wrong: as text, or as the values that a table had."""


@dataclass
class Result:
    """The valid rows of a batch, in order, and how many rows there were."""

    rows: list[Row] = field(default_factory=list)
    encoded: list[bytes] = field(default_factory=list)
    spellings: Counter[str] = field(default_factory=Counter)
    kept_keys: Counter[str] = field(default_factory=Counter)
    """How many rows had which key that went to their metadata."""
    seen: int = 0

    def add(self, spelling: str, row: Row, encoded: bytes, kept_keys: Iterable[str]) -> None:
        self.rows.append(row)
        self.encoded.append(encoded)
        self.spellings[spelling] += 1
        self.kept_keys.update(kept_keys)

    def extend(self, other: Result) -> None:
        self.rows += other.rows
        self.encoded += other.encoded
        self.spellings.update(other.spellings)
        self.kept_keys.update(other.kept_keys)
        self.seen += other.seen


@dataclass(frozen=True)
class _Fitting:
    """Rows that all have one shape."""

    shape: Shape
    sources: list[Any]
    canonical: Canonical
    encoded: list[bytes]

    def result(self) -> Result:
        counts = Counter({self.shape.spelling.name: len(self.sources)})
        return Result(self.canonical.rows, self.encoded, counts, self.canonical.kept_keys, len(self.sources))

    def keys_once(self, text: bytes) -> bool:
        """Whether surely no object in `text`, which these rows were decoded from, has a key twice: structs would not
        show it.

        Canonical JSON of text and whole numbers is the shortest that there is, white space aside; so if `text` is no
        longer, nothing was left out of it. Numbers with a fraction or an exponent may be written shorter; then the
        quotation marks are compared, provided that none is written as an escape. False says nothing.
        """
        if self.shape.keeps_keys and self.canonical.plain:
            wrapped = len(self.sources) * _WRAPPING if self.shape.extras else 0
            if count_above(text, _SPACE) + wrapped == count_above(b"".join(self.encoded), _SPACE):
                return True
        again = b"".join(map(encode, self.sources))
        return count(text, _QUOTE) == count(again, _QUOTE) and b"\\u0022" not in text


class RowReader:
    """Reads the rows of one file; what it learns about their shape carries over from batch to batch."""

    def __init__(
        self,
        entry: type[Format],
        findings: Findings,
        limits: Limits,
        mapping: FieldMapping | None = None,
        on_invalid: OnInvalid = lambda problems, row: None,
    ) -> None:
        self._entry = entry
        self._findings = findings
        self._limit = limits.row_bytes
        self._mapping = mapping or FieldMapping()
        self._shapes = Shapes(entry, self._mapping)
        self._on_invalid = on_invalid
        self.unrecognised: list[dict[str, Any]] = []
        """The first rows whose keys tell no spelling."""

    def lines(self, batch: Lines, first_row: int) -> Result:
        """Rows written as lines of JSON. `first_row` is the number of the first, from 1; blank lines are not rows."""
        shape = self._shapes.first
        if shape:
            found = self._fitting(shape, lambda: shape.decode_lines(batch.content))
            # As many rows as lines: no line is blank, no row goes over several.
            if found and len(found.sources) == batch.count and found.keys_once(batch.content):
                return found.result()
        return self.texts(batch.texts(), first_row)

    def texts(self, batch: Texts, first_row: int) -> Result:
        """Rows written as JSON. Blank texts are not rows."""
        shape, texts = self._shapes.first, batch.texts
        if shape:
            found = self._fitting(shape, lambda: list(map(shape.decode, texts)))
            if found and found.keys_once(b"".join(texts)):
                return found.result()
        if len(texts) > _SINGLY:
            result = Result()
            for half in batch.halves():
                result.extend(self.texts(half, first_row + result.seen))
            return result
        return self._singly(batch, first_row)

    def values(self, batch: Values, first_row: int) -> Result:
        """Rows that a typed container has already decoded."""
        shape = self._shapes.first
        if shape and (found := self._fitting(shape, lambda: shape.convert_all(batch.values))):
            return found.result()
        result = Result(seen=len(batch.values))
        for index, value in enumerate(batch.values):
            problems = Problems(self._findings, first_row + index, batch.line(index))
            if not self._fits(lambda shape, value=value: shape.convert_all([value]), None, problems, result):
                self._explain(value, problems, result)
            if problems.found:
                self._on_invalid(problems, value)
        return result

    def _singly(self, batch: Texts, first_row: int) -> Result:
        result = Result()
        for index, text in enumerate(batch.texts):
            if not text.strip():
                continue
            problems = Problems(self._findings, first_row + result.seen, batch.line(index))
            result.seen += 1
            if not self._fits(lambda shape, text=text: [shape.decode(text)], text, problems, result):
                value = parse(text, problems)
                if not problems.found:
                    self._explain(value, problems, result)
            if problems.found:
                self._on_invalid(problems, text)
        return result

    def _fitting(self, shape: Shape, decode: Callable[[], list[Any]]) -> _Fitting | None:
        """All rows in one shape, or None when one of them is not."""
        try:
            sources = decode()
            canonical = shape.canonical(sources)
            if canonical is None:
                return None
            encoded = list(map(encode, canonical.rows))
        except DECODE_ERRORS:
            return None
        if encoded and max(map(len, encoded)) > self._limit:
            return None
        return _Fitting(shape, sources, canonical, encoded)

    def _fits(
        self, decode: Callable[[Shape], list[Any]], text: bytes | None, problems: Problems, result: Result
    ) -> bool:
        """Whether one row, written as `text` if it was text, has a known shape; then it is in the result, or reported
        for having a key twice."""
        for shape in self._shapes:
            found = self._fitting(shape, lambda shape=shape: decode(shape))
            if found:
                if text is None or found.keys_once(text) or not key_twice(text, problems):
                    self._shapes.fitted(shape)
                    kept_keys = found.canonical.kept_keys
                    result.add(shape.spelling.name, found.canonical.rows[0], found.encoded[0], kept_keys)
                return True
        return False

    def _explain(self, value: Any, problems: Problems, result: Result) -> None:
        found = canonical(self._entry, value, problems, self._mapping.rename if self._mapping.names else None)
        if found is None:
            unknown = any(finding.reason is Reason.UNKNOWN_SPELLING for finding in problems.own)
            if unknown and len(self.unrecognised) < MAX_UNRECOGNISED:
                self.unrecognised.append(value)
            return
        spelling, row = found.spelling, found.row
        try:
            encoded = encode(row)
        except UnicodeEncodeError:
            problems.add("metadata", Reason.INVALID_UTF8, "holds text that is not valid UTF-8; save the file as UTF-8")
            return
        if len(encoded) > self._limit:
            problems.add("", Reason.ROW_TOO_LONG, f"takes {len(encoded)} bytes; at most {self._limit}")
            return
        self._shapes.learn(spelling, value, row)
        result.add(spelling.name, row, encoded, found.kept_keys)
