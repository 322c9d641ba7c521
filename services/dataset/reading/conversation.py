"""Lists of messages, and the rules of a conversation.

A conversation is `system? user (assistant (tool+ assistant)* user)* …`. Tool calls: messages of role `tool` are
accepted with their text; a structured `tool_calls` or `function_call` is refused, because a canonical message is
text and dropping the call would train on a different conversation. Write the call as text in `content`.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import UNSET

from services.dataset.reading.findings import Problems, Reason, kind
from services.dataset.reading.message import check_text, sound_extras
from services.dataset.reading.message import read as read_message
from services.dataset.reading.rows import Message, Role

Kind: TypeAlias = Literal["conversation", "prompt", "completion"]

# Which roles may follow; the kinds stand for the start of a list.
_AFTER: dict[str, frozenset[str]] = {
    "conversation": frozenset({"system", "user"}),
    "prompt": frozenset({"system", "user"}),
    "completion": frozenset({"assistant"}),
    "system": frozenset({"user"}),
    "user": frozenset({"assistant"}),
    "assistant": frozenset({"user", "tool"}),
    "tool": frozenset({"tool", "assistant"}),
}
_LAST: dict[Kind, frozenset[str]] = {
    "conversation": frozenset({"assistant"}),
    "prompt": frozenset({"user", "tool"}),
    "completion": frozenset({"assistant"}),
}


def sound(messages: list[Message], kind_: Kind) -> bool:
    """Whether `check` would find nothing: the fast path. Messages whose content needs a closer look give False."""
    previous: str = kind_
    for message in messages:
        content = message.content
        if message.role not in _AFTER[previous] or not content or content.isspace() or "\0" in content:
            return False
        plain = message.reasoning_content is UNSET and message.name is UNSET and message.weight is UNSET
        if not plain and not sound_extras(message):
            return False
        previous = message.role
    return previous in _LAST[kind_]


def check(messages: list[Message], kind_: Kind, field: str, problems: Problems) -> None:
    """Reports what breaks the rules. An empty list is an error of its own."""
    if not messages:
        problems.add(field, Reason.EMPTY, "has no messages; at least one is needed")
        return
    previous: str = kind_
    for index, message in enumerate(messages):
        path = f"{field}[{index}]"
        if message.role not in _AFTER[previous]:
            problems.add(f"{path}.role", Reason.ROLE_ORDER, _order(message.role, previous, index))
        previous = message.role
        check_text(message.content, f"{path}.content", problems, empty_allowed=message.role == "tool")
    if previous not in _LAST[kind_]:
        expected = " or ".join(sorted(_LAST[kind_]))
        message_ = f"the last message is the {previous}'s; it must be the {expected}'s"
        problems.add(f"{field}[{len(messages) - 1}].role", Reason.ROLE_ORDER, message_)
    elif kind_ != "prompt" and all(message.weight == 0 for message in messages if message.role == "assistant"):
        problems.add(field, Reason.NOTHING_TRAINED, "has weight 0 in every turn of the assistant; leave the row out")


def _order(role: str, previous: str, index: int) -> str:
    expected = " or ".join(sorted(_AFTER[previous]))
    if role == "system" and index:
        return f"a system message may only be the first; {expected} expected here"
    return f"{role} {f'after {previous}' if index else 'at the start'}; {expected} expected"


def read(value: Any, field: str, problems: Problems, default_role: Role | None = None) -> list[Message] | None:
    """Any spelling of a list of messages; None when it was not one (reported).

    With `default_role` a plain string is one message of that role, and an object is a list of one. An empty system
    message at the start says nothing and is left out.
    """
    if default_role and isinstance(value, str):
        return [Message(default_role, value)]
    items = [value] if default_role and isinstance(value, dict) else value
    if not isinstance(items, list):
        wanted = "a string or a list of messages" if default_role else "a list of messages"
        problems.add(field, Reason.WRONG_TYPE, f"is {kind(value)}; {wanted} expected")
        return None
    read_ = [read_message(item, f"{field}[{index}]", problems) for index, item in enumerate(items)]
    messages = [message for message in read_ if message is not None]
    if len(messages) < len(read_):
        return None
    if messages and messages[0].role == "system" and not messages[0].content.strip():
        del messages[0]
    return messages


def untrained(messages: list[Message]) -> list[Message]:
    """`messages` with every turn of the assistant kept out of the loss."""
    return [
        msgspec.structs.replace(message, weight=0) if message.role == "assistant" else message for message in messages
    ]


def with_system(messages: list[Message], system: Any, field: str, problems: Problems) -> list[Message]:
    """`messages` under the system text that stands beside them in the row; both at once is a conflict."""
    if system is None or system == "":
        return messages
    if not isinstance(system, str):
        problems.add("system", Reason.WRONG_TYPE, f"is {kind(system)}; a string expected")
        return messages
    if messages and messages[0].role == "system":
        problems.add("system", Reason.CONFLICT, f"stands beside a system message in {field}; keep one of them")
        return messages
    return [Message("system", system), *messages] if system.strip() else messages
