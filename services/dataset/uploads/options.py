"""How the rows of one file are to be read: names of keys, rows that may be wrong, rows held out."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
from msgspec import UNSET

from services.dataset.reading.rows import Row, encode


class Split(msgspec.Struct, frozen=True):
    """A share of the rows goes to another dataset, `<dataset>-<name>`.

    Which ones follows from what they hold: equal rows, whatever their metadata, go the same way, in this file and in
    the next. So no row is in both, and another seed chooses others.
    """

    name: str
    share: float
    seed: int = 0

    def holds_out(self, row: Row) -> bool:
        plain = row if row.metadata is UNSET else msgspec.structs.replace(row, metadata=UNSET)
        key = self.seed.to_bytes(8, "big", signed=True)
        digest = hashlib.blake2b(encode(plain), digest_size=8, key=key).digest()
        return int.from_bytes(digest, "big") < self.share * 2**64


class UploadOptions(msgspec.Struct, frozen=True, omit_defaults=True):
    """`field_mapping`: keys of the file → keys of the format. Rows that are wrong are left out as long as they are at
    most `max_invalid_rows`, or at most the share `max_invalid_share` of all."""

    field_mapping: dict[str, str] = {}
    max_invalid_rows: int = 0
    max_invalid_share: float = 0.0
    split: Split | None = None

    @property
    def skips_invalid(self) -> bool:
        return bool(self.max_invalid_rows or self.max_invalid_share)

    def tolerated(self, rows: int) -> int:
        """How many of so many rows may be wrong."""
        return max(self.max_invalid_rows, int(self.max_invalid_share * rows + 1e-9))


def to_json(options: UploadOptions) -> dict[str, Any]:
    return msgspec.to_builtins(options)


def from_json(values: dict[str, Any]) -> UploadOptions:
    return msgspec.convert(values, UploadOptions)
