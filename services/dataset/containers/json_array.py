"""A JSON array of rows, bare or inside one object, streamed: the array is cut into its elements, never held whole.

Only brackets, strings and the commas between rows are looked at here; each element is checked as JSON when it is
decoded, and what stands beside the array in a wrapping object is skipped.
"""

from __future__ import annotations

import re

from services.dataset.containers.batches import BLOCK_BYTES, Batches, ByteStream, Texts
from services.dataset.reading.findings import UnreadableFile
from services.dataset.reading.limits import Limits

ROW_KEYS = ("data", "rows", "examples", "records", "instances", "train")
MAX_DEPTH = 2000
"""Beyond msgspec's own bound on recursion: a row that is too deep is a finding before the file is refused."""

# A whole string, or a bracket, or a lone quote: a string whose end has not been read yet. Possessive (`++`, `*+`),
# since a greedy repetition would give its characters back one by one whenever that end is missing.
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[\]{}]|"', re.DOTALL)
_QUOTE, _OPENING = ord('"'), {ord("["): ord("]"), ord("{"): ord("}")}
_BLANK = b" \t\r\n"


class ArrayScanner:
    """Follows brackets and strings from block to block.

    `_closers` holds the bracket that must close each open one. Rows lie at depth `_base`, which is known once the
    array has been found. `_from` is where in the buffer the current row, or the gap before it, begins.
    """

    def __init__(self, limits: Limits) -> None:
        self._limit = limits.row_bytes
        self._buffer = b""
        self._position = 0
        self._closers: list[int] = []
        self._base: int | None = None
        self._in_row = False
        self._from = 0
        self._key = b""
        self._rows = 0
        self._elements: list[bytes] = []
        self._array_done = self._done = False

    def feed(self, block: bytes) -> list[bytes]:
        """The elements that `block` completes. Raises UnreadableFile when the array is broken."""
        self._buffer += block
        self._elements = []
        scanned = self._scan()
        keep = self._from if self._in_array() else scanned
        self._buffer = self._buffer[keep:]
        self._position, self._from = scanned - keep, max(self._from - keep, 0)
        self._check_length(self._buffer)
        return self._elements

    def end(self) -> None:
        """To be called at the end of the stream."""
        if not self._done:
            raise UnreadableFile("TRUNCATED_FILE", f"the JSON ends in the middle, after row {self._rows}")
        if not self._array_done:
            keys = ", ".join(ROW_KEYS)
            raise UnreadableFile("NO_ROWS", f"the JSON object holds no list of rows; it is looked for under {keys}")

    def _in_array(self) -> bool:
        return self._base is not None and not self._array_done

    def _scan(self) -> int:
        """Looks at every token of the buffer from `_position`; returns how far it came."""
        buffer = self._buffer
        for match in _TOKEN.finditer(buffer, self._position):
            if self._done:
                break
            start, end = match.span()
            first = buffer[start]
            if first == _QUOTE:
                if end - start == 1:
                    return start
                self._string(start, end)
            elif first in _OPENING:
                self._open(first, start)
            else:
                self._close(first, start)
        if self._done and buffer[self._from :].strip(_BLANK):
            raise _malformed("is followed by something else; one array or one object expected")
        return len(buffer)

    def _string(self, start: int, end: int) -> None:
        depth = len(self._closers)
        if self._in_array():
            if depth == self._base:
                self._gap(start, before_row=True)
                self._element(start, end)
        elif depth == 1:
            self._key = self._buffer[start + 1 : end - 1]

    def _open(self, bracket: int, at: int) -> None:
        depth = len(self._closers)
        if depth >= MAX_DEPTH:
            raise UnreadableFile("TOO_DEEP", f"row {self._rows + 1} is nested deeper than {MAX_DEPTH} levels")
        self._closers.append(_OPENING[bracket])
        if self._in_array():
            if depth == self._base:
                self._gap(at, before_row=True)
                self._in_row, self._from = True, at
        elif bracket == ord("[") and (depth == 0 or (depth == 1 and self._key.decode("latin-1") in ROW_KEYS)):
            if self._array_done:
                raise _malformed("is one of several lists of rows in this object; keep one of them")
            self._base, self._from = depth + 1, at + 1

    def _close(self, bracket: int, at: int) -> None:
        if not self._closers or self._closers.pop() != bracket:
            raise _malformed(f"has a bracket that closes nothing after row {self._rows}")
        depth = len(self._closers)
        if self._in_array():
            if depth == self._base:
                self._element(self._from, at + 1)
            elif depth < (self._base or 0):
                self._gap(at, before_row=False)
                self._array_done = True
        if not depth:
            self._done, self._from = True, at + 1

    def _element(self, start: int, end: int) -> None:
        self._add(self._buffer[start:end])
        self._in_row, self._from = False, end

    def _gap(self, at: int, before_row: bool) -> None:
        """What stands between two rows: one comma. Bare scalars (`[1, null, …]`) are rows too, wrong ones."""
        between = self._buffer[self._from : at].strip(_BLANK)
        pieces = [piece.strip(_BLANK) for piece in between.split(b",")]
        after_row = self._rows > 0
        if (after_row and pieces.pop(0)) or (before_row and (not pieces or pieces.pop())):
            raise _malformed(f"needs a comma after row {self._rows}")
        if not after_row and not before_row and pieces == [b""]:
            return
        for scalar in pieces:
            if not scalar:
                raise _malformed(f"has a comma too many after row {self._rows}")
            self._add(scalar)

    def _add(self, element: bytes) -> None:
        self._check_length(element)
        self._elements.append(element)
        self._rows += 1

    def _check_length(self, part: bytes) -> None:
        if len(part) > self._limit:
            message = f"row {self._rows + 1} is longer than {self._limit} bytes; split it or shorten its texts"
            raise UnreadableFile("ROW_TOO_LONG", message, row=self._rows + 1)


def _malformed(what: str) -> UnreadableFile:
    return UnreadableFile("MALFORMED_JSON", f"the JSON array {what}")


def read(stream: ByteStream, limits: Limits, block_bytes: int = BLOCK_BYTES) -> Batches:
    """The elements of the array. Raises UnreadableFile when the array itself is broken: nobody could tell where its
    next row begins."""
    scanner = ArrayScanner(limits)
    while block := stream.read(block_bytes):
        if elements := scanner.feed(block):
            yield Texts(elements, None)
    scanner.end()
