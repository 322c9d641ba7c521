"""Alpaca's fields: `instruction`, `input`, `system`, `history`, shared by the formats that know this spelling, and
Dolly's, which are much the same.

Source: the Stanford Alpaca data and LLaMA-Factory's extension of it. As in LLaMA-Factory, `input` follows the
instruction on a new line; Alpaca's own English prompt template is not baked into the data.
"""

from __future__ import annotations

from typing import Any

from services.dataset.reading.conversation import with_system
from services.dataset.reading.findings import Problems, Reason, kind
from services.dataset.reading.rows import Message


def request(instruction: str, input_: str | None) -> str:
    return f"{instruction}\n{input_}" if input_ else instruction


def text(fields: dict[str, Any], key: str, problems: Problems) -> str | None:
    """Pops an optional string; None when absent or of another type (reported)."""
    value = fields.pop(key, None)
    if value is None or isinstance(value, str):
        return value
    problems.add(key, Reason.WRONG_TYPE, f"is {kind(value)}; a string expected")
    return None


def prompt(fields: dict[str, Any], problems: Problems) -> list[Message] | None:
    """Pops the four fields: the earlier turns, then the request. None when one has a wrong type (reported).

    Dolly calls `context` what Alpaca calls `input`.
    """
    instruction = text(fields, "instruction", problems)
    input_ = text(fields, "input" if "input" in fields else "context", problems)
    system = fields.pop("system", None)
    earlier = _history(fields.pop("history", None) or [], problems)
    if instruction is None or earlier is None:
        return None
    messages = [*earlier, Message("user", request(instruction, input_))]
    return with_system(messages, system, "history", problems)


def _history(value: Any, problems: Problems) -> list[Message] | None:
    """Pairs of a request and its reply, oldest first."""
    if not isinstance(value, list):
        problems.add("history", Reason.WRONG_TYPE, f"is {kind(value)}; a list of [request, reply] pairs expected")
        return None
    messages: list[Message] = []
    for index, pair in enumerate(value):
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            problems.add(f"history[{index}]", Reason.WRONG_TYPE, "is not a [request, reply] pair of strings")
            return None
        messages += [Message("user", pair[0]), Message("assistant", pair[1])]
    return messages
