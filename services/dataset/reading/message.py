"""One message: every common spelling of it, and what its keys mean.

Nothing of a message is dropped in silence. What a canonical message has no place for and what would make another
conversation without it (tool calls, images) is refused by name; every other key goes to the metadata of the row.
"""

from __future__ import annotations

from typing import Any, cast

from msgspec import UNSET, UnsetType

from services.dataset.reading.findings import Problems, Reason, kind, shown
from services.dataset.reading.rows import Message, Role

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
MEDIA_KEYS = ("images", "image", "audios", "audio", "videos", "video")
_TOOL_KEYS = ("tool_calls", "function_call")
# Of an assistant's thoughts, by DeepSeek and Qwen, by OpenRouter, by gpt-oss and Ollama.
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
# 0 or false keeps a turn out of the loss: OpenAI's, TRL's and Axolotl's, ms-swift's.
_WEIGHT_KEYS = ("weight", "loss_weight", "train", "loss")


def refuse_media(item: dict[str, Any], prefix: str, problems: Problems) -> None:
    """Reports pictures, sound and films beside a text: without them it would be another text."""
    for key in MEDIA_KEYS:
        if item.get(key):
            problems.add(f"{prefix}{key}", Reason.MEDIA, "only text is trained on; leave out rows with media")


def read(item: Any, field: str, problems: Problems) -> Message | None:
    """The message, or None when something is wrong with it (reported)."""
    if not isinstance(item, dict):
        problems.add(field, Reason.WRONG_TYPE, f"is {kind(item)}; an object with role and content expected")
        return None
    fields = {str(key): value for key, value in item.items() if value is not None}
    for key in _TOOL_KEYS:
        if fields.pop(key, None):
            problems.add(f"{field}.{key}", Reason.TOOL_CALLS, "structured tool calls are not read; write them as text")
            return None
    refuse_media(fields, f"{field}.", problems)
    role, content = _role(fields, field, problems), _content(fields, field, problems)
    if role is None or content is None:
        return None
    message = Message(
        role,
        content,
        reasoning_content=_reasoning(fields, role, field, problems),
        name=_text(fields, "name", field, problems),
        weight=_weight(fields, role, field, problems),
    )
    if rest := {key: value for key, value in fields.items() if key not in MEDIA_KEYS}:
        problems.unread[field] = problems.unread.get(field, {}) | rest
    return message


def sound_extras(message: Message) -> bool:
    """Whether nothing is wrong with what a message has besides role and content: the fast path."""
    reasoning, name = message.reasoning_content, message.name
    if message.weight is not UNSET or (reasoning is not UNSET and message.role != "assistant"):
        return False
    return all(text is UNSET or bool(text and not text.isspace() and "\0" not in text) for text in (reasoning, name))


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


def _role(fields: dict[str, Any], field: str, problems: Problems) -> Role | None:
    key = "from" if "from" in fields and "role" not in fields else "role"
    value = fields.pop(key, None)
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


def _content(fields: dict[str, Any], field: str, problems: Problems) -> str | None:
    key = "value" if "value" in fields and "content" not in fields else "content"
    value, path = fields.pop(key, None), f"{field}.{key}"
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
        if rest := {str(key): value for key, value in part.items() if key not in ("type", "text") and value}:
            problems.unread[field] = rest
        return part["text"]
    given = part.get("type") if isinstance(part, dict) else kind(part)
    wanted = 'only {"type": "text", "text": …} is read'
    problems.add(field, Reason.UNSUPPORTED_PART, f"{wanted}, this is {shown(given)}")
    return None


def _text(fields: dict[str, Any], key: str, field: str, problems: Problems) -> str | UnsetType:
    """Pops an optional text; an empty one says nothing."""
    value = fields.pop(key, None)
    if value is None or value == "":
        return UNSET
    if not isinstance(value, str):
        problems.add(f"{field}.{key}", Reason.WRONG_TYPE, f"is {kind(value)}; a string expected")
        return UNSET
    check_text(value, f"{field}.{key}", problems)
    return value


def _reasoning(fields: dict[str, Any], role: Role, field: str, problems: Problems) -> str | UnsetType:
    given = [key for key in _REASONING_KEYS if isinstance(fields.get(key), str)]
    texts = {key: text for key in given if (text := _text(fields, key, field, problems)) is not UNSET}
    if not texts:
        return UNSET
    first, *others = texts
    if role != "assistant":
        problems.add(f"{field}.{first}", Reason.CONFLICT, f"is the {role}'s; only the assistant's thoughts are read")
    if any(texts[other] != texts[first] for other in others):
        problems.add(f"{field}.{others[0]}", Reason.CONFLICT, f"differs from {first}; keep one of them")
    return texts[first]


def _weight(fields: dict[str, Any], role: Role, field: str, problems: Problems) -> Any:
    """0 where the turn is not to be trained, else UNSET: what is no assistant's is never trained."""
    wanted: dict[str, bool] = {}
    for key in _WEIGHT_KEYS:
        value = fields.pop(key, None)
        if value is None:
            continue
        if not isinstance(value, (bool, int, float)) or value not in (0, 1):
            message = f"is {shown(value)}; 0 keeps the turn out of the loss, 1 trains it, nothing lies between"
            problems.add(f"{field}.{key}", Reason.UNSUPPORTED_WEIGHT, message)
        elif value and role != "assistant":
            message = f"would train the {role}'s turn, and only the assistant's are trained; leave it out"
            problems.add(f"{field}.{key}", Reason.UNSUPPORTED_WEIGHT, message)
        else:
            wanted[key] = bool(value)
    if len(set(wanted.values())) > 1:
        problems.add(f"{field}.{list(wanted)[1]}", Reason.CONFLICT, f"contradicts {next(iter(wanted))}; keep one")
    return 0 if role == "assistant" and False in wanted.values() else UNSET
