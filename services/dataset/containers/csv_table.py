"""CSV with a header: commas, double quotes, quotes doubled inside (RFC 4180), UTF-8.

Empty cells are absent. What CSV cannot express is written as JSON text in a cell: in the columns of JSON_COLUMNS any
object or list, in those of MESSAGE_COLUMNS a list of messages or one message. All other cells are text.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from services.dataset.containers.batches import BLOCK_BYTES, Batch, Batches, Broken, ByteStream, Values
from services.dataset.containers.json_lines import line_blocks, too_long
from services.dataset.reading.findings import Reason, UnreadableFile, shown
from services.dataset.reading.limits import Limits

JSON_COLUMNS = frozenset({"messages", "conversations", "history", "reward_model", "extra_info", "metadata"})
MESSAGE_COLUMNS = frozenset({"prompt", "question", "problem", "chosen", "rejected", "completion"})
ROWS_PER_BATCH = 256


class _TooLong(Exception):
    """Raised through csv.reader, which then begins afresh with the next line."""


class _Records:
    """The lines of the file for csv.reader, which asks for as many as a record has."""

    def __init__(self, stream: ByteStream, limits: Limits, block_bytes: int) -> None:
        self._limit = limits.row_bytes
        self._lines = self._each(stream, block_bytes)
        self._record_bytes = 0
        self.line = 0

    def begin(self) -> None:
        self._record_bytes = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.line += 1
        self._record_bytes += self._limit + 1 if line is None else len(line) + 1
        if line is None or self._record_bytes > self._limit:
            raise _TooLong
        # Invalid bytes become lone surrogates, which the checks of the row report as invalid UTF-8.
        return line.decode("utf-8", "surrogateescape") + "\n"

    def _each(self, stream: ByteStream, block_bytes: int) -> Iterator[bytes | None]:
        for lines in line_blocks(stream, self._limit, block_bytes):
            yield from lines


def read(
    stream: ByteStream, limits: Limits, block_bytes: int = BLOCK_BYTES, names: Mapping[str, str] | None = None
) -> Batches:
    """Rows below the header, in batches. Raises UnreadableFile for a header that cannot be used.

    The cells of a column are read as those of the name that `names` gives it.
    """
    # csv's only bound on the length of a field is a setting of the whole process; rows are bounded by _Records.
    csv.field_size_limit(limits.row_bytes + 1)
    records = _Records(stream, limits, block_bytes)
    reader = csv.reader(records, strict=True)
    header = _header(records, reader, limits)
    values: list[dict[str, Any]] = []
    lines: list[int] = []
    read_as = [(names or {}).get(name, name) for name in header]
    for line, outcome in _rows(records, reader, header, read_as, limits):
        if isinstance(outcome, dict):
            values.append(outcome)
            lines.append(line)
        if values and (len(values) >= ROWS_PER_BATCH or not isinstance(outcome, dict)):
            yield Values(values, lines)
            values, lines = [], []
        if not isinstance(outcome, dict):
            yield outcome
    if values:
        yield Values(values, lines)


def _header(records: _Records, reader: Iterator[list[str]], limits: Limits) -> list[str]:
    try:
        header = next((cells for cells in reader if cells), [])
    except (csv.Error, _TooLong) as error:
        raise UnreadableFile("CSV_HEADER", f"the header cannot be read: {error or 'it is too long'}") from None
    names = [name.strip() for name in header]
    if len(names) == 1 and any(mark in names[0] for mark in (";", "\t")):
        raise UnreadableFile("CSV_HEADER", "the columns are not separated by commas; save the file with commas")
    if not all(names) or len(set(names)) < len(names):
        raise UnreadableFile("CSV_HEADER", f"every column needs a name of its own, the header is {shown(header)}")
    if len(names) > limits.columns:
        raise UnreadableFile("TOO_MANY_COLUMNS", f"has {len(names)} columns; at most {limits.columns}")
    return names


def _rows(
    records: _Records, reader: Iterator[list[str]], header: list[str], read_as: list[str], limits: Limits
) -> Iterator[tuple[int, dict[str, Any] | Batch]]:
    """(line on which it begins, row or what is wrong with it) of each record."""
    while True:
        records.begin()
        line = records.line + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, Broken(line, Reason.CSV_QUOTING, f"{error}; quote cells with commas, double quotes in them")
        except _TooLong:
            yield line, too_long(line, limits.row_bytes)
        else:
            if len(cells) == len(header):
                named = zip(header, read_as, cells, strict=True)
                yield line, {name: _cell(like, text) for name, like, text in named if text}
            elif cells:
                message = f"has {len(cells)} cells, the header has {len(header)}"
                yield line, Broken(line, Reason.CSV_COLUMNS, message)


def _cell(name: str, text: str) -> Any:
    if text[0] not in "[{" or not (name in JSON_COLUMNS or name in MESSAGE_COLUMNS):
        return text
    try:
        value = msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return text
    return value if name in JSON_COLUMNS or _is_messages(value) else text


def _is_messages(value: Any) -> bool:
    items = value if isinstance(value, list) else [value]
    return bool(items) and all(isinstance(item, dict) and item.keys() & {"role", "from"} for item in items)
