"""Conversations as a model's chat template renders them, and which of the tokens an assistant's turn is made of."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError

from services.models.template_limits import timed

Message = Mapping[str, Any]
_REASONING_END = "</think>"
# A canonical row's name first; OpenRouter's and gpt-oss's.
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
_BEGINS_OTHERWISE = "the chat template renders the beginning of a conversation otherwise than the whole"


class TemplateRefusesError(Exception):
    """The chat template does not render a conversation; the text says what it says."""


def render(tokenizer: Any, messages: Sequence[Message], opening: bool = False) -> list[int]:
    """The tokens of a conversation; with those that open the assistant's turn where `opening`.

    Raises TemplateRefusesError.
    """
    return _apply(tokenizer, rendered_roles(tokenizer, messages), opening, True)


def render_all(tokenizer: Any, conversations: Sequence[Sequence[Message]], opening: bool = False) -> list[list[int]]:
    """`render` of each. Raises TemplateRefusesError where the template refuses one of them."""
    return _apply(tokenizer, [rendered_roles(tokenizer, messages) for messages in conversations], opening, True)


def text(tokenizer: Any, messages: Sequence[Message]) -> str:
    """What `render` makes tokens of. Raises TemplateRefusesError."""
    return _text(tokenizer, messages, False)


def rendered_roles(tokenizer: Any, messages: Sequence[Message]) -> list[dict[str, Any]]:
    """`messages` as the template takes them: where it has no system role (Gemma's refuses it, others drop it) the
    system message stands at the beginning of the first user message, as Gemma's authors advise; and thoughts stand
    under the template's own name.
    """
    plain = [_with_reasoning(tokenizer, message) for message in messages]
    if len(plain) < 2 or plain[0]["role"] != "system" or plain[1]["role"] != "user":
        return plain
    if has_system_role(tokenizer):
        return plain
    system, user, *rest = plain
    return [{**user, "content": f"{system['content']}\n\n{user['content']}"}, *rest]


def has_system_role(tokenizer: Any) -> bool:
    return _has_system_role(tokenizer, str(tokenizer.chat_template))


@lru_cache(maxsize=8)
def _has_system_role(tokenizer: Any, _template: str) -> bool:
    mark = "SystemRoleProbe"
    asked = [{"role": "system", "content": mark}, {"role": "user", "content": "a"}]
    try:
        return mark in _apply(tokenizer, asked, False, False)
    except TemplateRefusesError:
        return False


def reasoning_key(tokenizer: Any) -> str:
    """The key of an assistant's message whose text the template writes as thoughts; "" where it writes none."""
    return _reasoning_key(tokenizer, str(tokenizer.chat_template))


@lru_cache(maxsize=8)
def _reasoning_key(tokenizer: Any, _template: str) -> str:
    mark = "ReasoningProbe"
    for key in _REASONING_KEYS:
        asked = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", key: mark}]
        try:
            if mark in _apply(tokenizer, asked, False, False):
                return key
        except TemplateRefusesError:
            continue
    return ""


def _with_reasoning(tokenizer: Any, message: Message) -> dict[str, Any]:
    plain = dict(message)
    if "reasoning_content" in plain and (key := reasoning_key(tokenizer)):
        plain[key] = plain.pop("reasoning_content")
    return plain


def trained_turns(messages: Sequence[Message], first: int = 0) -> list[int]:
    """Indexes of the messages that are trained, from the `first` on: the assistant's, but those of weight 0."""
    return [
        index
        for index in range(first, len(messages))
        if messages[index]["role"] == "assistant" and messages[index].get("weight", 1) != 0
    ]


def trained_tokens(tokenizer: Any, messages: Sequence[Message], turns: Collection[int]) -> tuple[list[int], list[int]]:
    """Tokens of the whole conversation, and 1 for those that the assistant's messages of index `turns` are made of,
    their end included: what the template adds from a turn's opening to the turn's end.

    Raises TemplateRefusesError, also where a conversation's beginning is rendered otherwise than the whole.
    """
    text = _text(tokenizer, messages, False)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    tokens, places = list(encoded["input_ids"]), encoded["offset_mapping"]
    mask = [0] * len(tokens)
    for turn in sorted(turns):
        begin, end = _span(tokenizer, messages, turn, text)
        # A token that begins before the turn is one that the model, asked with the opening, never writes.
        first = next((at for at, place in enumerate(places) if place[0] >= begin), len(tokens))
        if any(place[0] < begin < place[1] for place in places):
            # Or of a run of characters that are no piece, of which every byte counts as all of the run.
            opening = render(tokenizer, messages[:turn], opening=True)
            first = len(opening) if tokens[: len(opening)] == opening else first
        last = next((at for at in range(first, len(tokens)) if places[at][0] >= end), len(tokens))
        mask[first:last] = [1] * (last - first)
    return tokens, mask


def check_turns(tokenizer: Any, messages: Sequence[Message], turns: Collection[int]) -> None:
    """Raises TemplateRefusesError where `trained_tokens` would; several times faster."""
    text = _text(tokenizer, messages, False)
    for turn in turns:
        _span(tokenizer, messages, turn, text)


def turn_end(tokenizer: Any) -> str:
    """What the template puts after an assistant's message, whatever follows it; "" where it can't be told."""
    mark = "TurnEndProbe"
    asked = [{"role": "user", "content": "a"}, {"role": "assistant", "content": mark}]
    try:
        last = _text(tokenizer, asked, False)
        between = _text(tokenizer, [*asked, {"role": "user", "content": "b"}], False)
    except TemplateRefusesError:
        return ""
    return _common_start(last.rpartition(mark)[2], between.rpartition(mark)[2])


def _span(tokenizer: Any, messages: Sequence[Message], turn: int, text: str) -> tuple[int, int]:
    """Where in `text`, the whole conversation, an assistant's turn begins and ends."""
    opening = _text(tokenizer, messages[:turn], True) if turn else ""
    # Of an opening that the finished turn does not have (`<think>`, of models that always think) only what it has.
    begin = len(_common_start(opening, text))
    if begin < len(opening) and begin < len(_text(tokenizer, messages[:turn], False)):
        raise TemplateRefusesError(_BEGINS_OTHERWISE)
    through = text if turn == len(messages) - 1 else _text(tokenizer, messages[: turn + 1], False)
    if text.startswith(through):
        return begin, len(through)
    # The last turn is rendered otherwise than the same one in the middle: Qwen3 leaves out earlier thoughts.
    said = str(messages[turn].get("content") or "").rpartition(_REASONING_END)[2]
    at, tail = text.find(said.strip(), begin), turn_end(tokenizer)
    # White space after it may be kept, or left out in part.
    space = re.escape(said[len(said.rstrip()) :])
    ended = re.compile(rf"({space}|\s*?){re.escape(tail)}").match(text, at + len(said.strip()))
    if not tail or at < 0 or ended is None:
        raise TemplateRefusesError(_BEGINS_OTHERWISE)
    return begin, ended.end()


def _text(tokenizer: Any, messages: Sequence[Message], opening: bool) -> str:
    return _apply(tokenizer, rendered_roles(tokenizer, messages), opening, False)


def _apply(tokenizer: Any, messages: Sequence[Any], opening: bool, tokenize: bool) -> Any:
    settings: dict[str, Any] = {"return_dict": False} if tokenize else {}
    several = bool(messages) and not isinstance(messages[0], Mapping)
    try:
        with timed(len(messages) if several else 1):
            return tokenizer.apply_chat_template(
                list(messages), add_generation_prompt=opening, tokenize=tokenize, **settings
            )
    except TemplateError as error:
        raise TemplateRefusesError(str(error)) from error
    except MemoryError as error:
        raise TemplateRefusesError("MemoryError: it builds more than the memory that it may have holds") from error
    except Exception as error:
        # Whatever a stranger's template does to what is not there, or is of another type.
        raise TemplateRefusesError(f"{type(error).__name__}: {error}") from error


def _common_start(one: str, other: str) -> str:
    if other.startswith(one):
        return one
    length = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:length]
