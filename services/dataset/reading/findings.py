"""What is wrong with the rows of a file: findings for people, counts for programs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from services.mesh.errors import PlatformError

SHOWN_CHARACTERS = 60
# Of one row, kept with it.
MAX_OWN = 10


class Reason(StrEnum):
    """Stable words that a client may branch on."""

    INVALID_JSON = "invalid_json"
    INVALID_UTF8 = "invalid_utf8"
    INVALID_NUMBER = "invalid_number"
    DUPLICATE_KEY = "duplicate_key"
    TOO_DEEP = "too_deep"
    ROW_TOO_LONG = "row_too_long"
    CSV_QUOTING = "csv_quoting"
    CSV_COLUMNS = "csv_columns"
    NOT_AN_OBJECT = "not_an_object"
    UNKNOWN_SPELLING = "unknown_spelling"
    MISSING = "missing"
    WRONG_TYPE = "wrong_type"
    EMPTY = "empty"
    NUL_CHARACTER = "nul_character"
    UNKNOWN_ROLE = "unknown_role"
    ROLE_ORDER = "role_order"
    TOOL_CALLS = "tool_calls"
    MEDIA = "media"
    KTO_LABEL = "kto_label"
    UNSUPPORTED_WEIGHT = "unsupported_weight"
    NOTHING_TRAINED = "nothing_trained"
    UNSUPPORTED_PART = "unsupported_part"
    UNSUPPORTED_TYPE = "unsupported_type"
    CONFLICT = "conflict"
    NO_COMMON_PROMPT = "no_common_prompt"
    CHOSEN_IS_REJECTED = "chosen_is_rejected"


@dataclass(frozen=True)
class Finding:
    """One thing wrong with one row.

    `row` and `line` count from 1, as a person does; `line` is None where the container has none (Parquet, a JSON
    array). `field` is a path such as `messages[2].content`, empty for the whole row.
    """

    row: int
    line: int | None
    field: str
    reason: Reason
    message: str


class UnreadableFile(PlatformError):
    """The file as a whole cannot be read: not what its name says, truncated, damaged, empty or beyond a limit."""

    code = "INVALID_ARGUMENT"


class Findings:
    """Keeps the first `keep` findings, and of each reason the first `keep_of_reason`; counts all of them. Memory does
    not grow with the number of bad rows."""

    def __init__(self, keep: int, keep_of_reason: int | None = None) -> None:
        self._keep = keep
        self._keep_of_reason = keep if keep_of_reason is None else keep_of_reason
        self.kept: list[Finding] = []
        self.counts: Counter[str] = Counter()

    @property
    def total(self) -> int:
        return self.counts.total()

    def add(self, finding: Finding) -> None:
        self.counts[finding.reason.value] += 1
        if len(self.kept) < self._keep and self.counts[finding.reason.value] <= self._keep_of_reason:
            self.kept.append(finding)


class Problems:
    """The problems of one row; knows where the row stands, so that the code that reads a field need not."""

    def __init__(self, findings: Findings, row: int, line: int | None) -> None:
        self._findings, self.row, self.line = findings, row, line
        self.found = False
        self.own: list[Finding] = []
        """The first of this row."""
        self.unread: dict[str, dict[str, Any]] = {}
        """Keys that no format reads, by the place of the message that has them: they become metadata of the row."""

    def add(self, field: str, reason: Reason, message: str) -> None:
        self.found = True
        finding = Finding(self.row, self.line, field, reason, message)
        self._findings.add(finding)
        if len(self.own) < MAX_OWN:
            self.own.append(finding)


def shown(value: object) -> str:
    """A value as a message may quote it: short, printable, on one line."""
    text = repr(value[: SHOWN_CHARACTERS + 1] if isinstance(value, (str, bytes)) else value)
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"


KINDS: dict[type, str] = {
    dict: "an object",
    list: "a list",
    str: "a string",
    bool: "true or false",
    int: "a number",
    float: "a number",
    type(None): "null",
}


def kind(value: object) -> str:
    """What a value is, in the words of JSON."""
    return KINDS.get(type(value), type(value).__name__)
