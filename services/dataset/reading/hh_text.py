"""Prompts that are not written out: the common beginning of two dialogues.

Source: TRL's `extract_prompt` (implicit-prompt preference) and Anthropic's hh-rlhf text form.
"""

from __future__ import annotations

import re

from services.dataset.reading.rows import Message

_MARK = re.compile(r"\n\n(Human|Assistant):")


def split(chosen: list[Message], rejected: list[Message]) -> tuple[list[Message], list[Message], list[Message]]:
    """(prompt, rest of chosen, rest of rejected). A prompt never ends with the assistant: that is an answer."""
    common = 0
    for ours, theirs in zip(chosen, rejected, strict=False):
        if ours != theirs:
            break
        common += 1
    while common and chosen[common - 1].role == "assistant":
        common -= 1
    return chosen[:common], chosen[common:], rejected[common:]


def repeats_prompt(side: list[Message]) -> bool:
    return bool(side) and side[0].role in ("system", "user")


def same_request(prompt: list[Message], repeated: list[Message]) -> bool:
    """Whether a prompt written out and the one that both sides begin with end in the same request."""
    return bool(prompt) and bool(repeated) and prompt[-1] == repeated[-1]


def parse(chosen: str, rejected: str) -> tuple[list[Message], list[Message]]:
    """Two texts as dialogues: by their "Human:" and "Assistant:" marks, else the common beginning is the request.

    As in TRL, the white space before the first different word goes with the answer.
    """
    if _MARK.match(chosen) and _MARK.match(rejected):
        return _marked(chosen), _marked(rejected)
    if chosen == rejected:
        return [Message("assistant", chosen)], [Message("assistant", rejected)]
    pairs = zip(chosen, rejected, strict=False)
    differ = next((at for at, (ours, theirs) in enumerate(pairs) if ours != theirs), min(len(chosen), len(rejected)))
    common = chosen[:differ]
    common = common[: max(common.rfind(" "), common.rfind("\n"), 0)]
    start = [Message("user", common)] if common.strip() else []
    at = len(common) if start else 0
    return [*start, Message("assistant", chosen[at:])], [*start, Message("assistant", rejected[at:])]


def _marked(text: str) -> list[Message]:
    pieces = _MARK.split(text)[1:]
    roles, contents = pieces[::2], pieces[1::2]
    return [
        Message("user" if role == "Human" else "assistant", content.strip())
        for role, content in zip(roles, contents, strict=True)
    ]
