"""Lists of messages: reading every common spelling of a message, and the rules of a conversation.

A conversation is `system? user (assistant (tool+ assistant)* user)* …`. Tool calls: messages of role `tool` are
accepted with their text; a structured `tool_calls` or `function_call` is refused, because a canonical message is
text and dropping the call would train on a different conversation. Write the call as text in `content`.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, cast

from services.dataset.findings import Problems, Reason, kind, shown
from services.dataset.rows import Message, Role

Kind: TypeAlias = Literal["conversation", "prompt", "completion"]

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}

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


def _order(role: str, previous: str, index: int) -> str:
    expected = " or ".join(sorted(_AFTER[previous]))
    if role == "system" and index:
        return f"a system message may only be the first; {expected} expected here"
    return f"{role} {f'after {previous}' if index else 'at the start'}; {expected} expected"


def check_text(text: str, field: str, problems: Problems, empty_allowed: bool = False) -> None:
    """Text that can be stored and trained on: something in it, no NUL, valid Unicode."""
    if not empty_allowed and (not text or text.isspace()):
        problems.add(field, Reason.EMPTY, "is empty; text expected")
    if "\0" in text:
        problems.add(field, Reason.NUL_CHARACTER, "holds a NUL character (U+0000); remove it")
    if not text.isascii() and _has_surrogate(text):
        problems.add(field, Reason.INVALID_UTF8, "is not valid UTF-8; save the file as UTF-8")


def _has_surrogate(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


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
    read_ = [_message(item, f"{field}[{index}]", problems) for index, item in enumerate(items)]
    messages = [message for message in read_ if message is not None]
    if len(messages) < len(read_):
        return None
    if messages and messages[0].role == "system" and not messages[0].content.strip():
        del messages[0]
    return messages


def _message(item: Any, field: str, problems: Problems) -> Message | None:
    if not isinstance(item, dict):
        problems.add(field, Reason.WRONG_TYPE, f"is {kind(item)}; an object with role and content expected")
        return None
    for key in ("tool_calls", "function_call"):
        if item.get(key):
            problems.add(f"{field}.{key}", Reason.TOOL_CALLS, "structured tool calls are not read; write them as text")
            return None
    role = _role(item, field, problems)
    content = _content(item, field, problems)
    return None if role is None or content is None else Message(role, content)


def _role(item: dict[str, Any], field: str, problems: Problems) -> Role | None:
    key = "from" if "from" in item and "role" not in item else "role"
    value = item.get(key)
    if value is None:
        problems.add(f"{field}.{key}", Reason.MISSING, "is missing; system, user, assistant or tool expected")
    elif not isinstance(value, str):
        problems.add(f"{field}.{key}", Reason.WRONG_TYPE, f"is {kind(value)}; a string expected")
    elif value not in ROLES:
        known = ", ".join(ROLES)
        problems.add(f"{field}.{key}", Reason.UNKNOWN_ROLE, f"unknown role {shown(value)}; one of {known}")
    else:
        return ROLES[value]
    return None


def _content(item: dict[str, Any], field: str, problems: Problems) -> str | None:
    key = "value" if "value" in item and "content" not in item else "content"
    value, path = item.get(key), f"{field}.{key}"
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        parts = [_part(part, f"{path}[{index}]", problems) for index, part in enumerate(value)]
        return None if None in parts else "".join(cast("list[str]", parts))
    if value is None:
        problems.add(path, Reason.MISSING, "is missing; a string or a list of text parts expected")
    else:
        problems.add(path, Reason.WRONG_TYPE, f"is {kind(value)}; a string or a list of text parts expected")
    return None


def _part(part: Any, field: str, problems: Problems) -> str | None:
    """One part of OpenAI's `content` list. Parts are joined without a separator, as chat templates do."""
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and part.get("type", "text") == "text" and isinstance(part.get("text"), str):
        return part["text"]
    given = part.get("type") if isinstance(part, dict) else kind(part)
    wanted = 'only {"type": "text", "text": …} is read'
    problems.add(field, Reason.UNSUPPORTED_PART, f"{wanted}, this is {shown(given)}")
    return None


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
