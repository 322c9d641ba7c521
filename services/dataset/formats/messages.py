"""Supervised fine-tuning."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import msgspec
from msgspec import UNSET, UnsetType

from services.dataset import instructions, turns
from services.dataset.findings import Problems
from services.dataset.formats import formats
from services.dataset.rows import Message, MessagesRow, Row
from services.dataset.spellings import Source, Spelling


class OpenAI(Source):
    messages: list[Message]


class Turn(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    speaker: Literal["system", "human", "user", "gpt", "assistant"] = msgspec.field(name="from")
    value: str


class ShareGPT(Source):
    conversations: list[Turn]


class Alpaca(Source):
    instruction: str
    output: str
    input: str | UnsetType | None = UNSET
    system: str | UnsetType | None = UNSET


class PromptCompletion(Source):
    prompt: str | list[Message]
    completion: str | list[Message]


def _checked(messages: list[Message]) -> MessagesRow | None:
    return MessagesRow(messages) if turns.sound(messages, "conversation") else None


def _quick_openai(source: OpenAI) -> MessagesRow | None:
    return _checked(source.messages)


def _quick_sharegpt(source: ShareGPT) -> MessagesRow | None:
    return _checked([Message(turns.ROLES[turn.speaker], turn.value) for turn in source.conversations])


def _quick_alpaca(source: Alpaca) -> MessagesRow | None:
    if not turns.sound([Message("user", source.instruction)], "prompt"):
        return None
    user = Message("user", instructions.request(source.instruction, source.input or None))
    start = [Message("system", source.system)] if source.system else []
    return _checked([*start, user, Message("assistant", source.output)])


def _quick_prompt_completion(source: PromptCompletion) -> MessagesRow | None:
    prompt, completion = source.prompt, source.completion
    start = [Message("user", prompt)] if isinstance(prompt, str) else prompt
    end = [Message("assistant", completion)] if isinstance(completion, str) else completion
    if not turns.sound(start, "prompt") or not turns.sound(end, "completion"):
        return None
    return MessagesRow([*start, *end])


def _explain_list(key: str, fields: dict[str, Any], problems: Problems) -> Row | None:
    messages = turns.read(fields.pop(key), key, problems)
    system = fields.pop("system", None)
    if messages is None:
        return None
    turns.check(messages, "conversation", key, problems)
    return MessagesRow(turns.with_system(messages, system, key, problems))


def _explain_openai(fields: dict[str, Any], problems: Problems) -> Row | None:
    return _explain_list("messages", fields, problems)


def _explain_sharegpt(fields: dict[str, Any], problems: Problems) -> Row | None:
    return _explain_list("conversations", fields, problems)


def _explain_alpaca(fields: dict[str, Any], problems: Problems) -> Row | None:
    instruction = fields["instruction"]
    prompt = instructions.prompt(fields, problems)
    output = instructions.text(fields, "output", problems)
    if prompt is None or output is None:
        return None
    turns.check_text(instruction, "instruction", problems)
    turns.check(prompt, "prompt", "prompt", problems)
    turns.check_text(output, "output", problems)
    return MessagesRow([*prompt, Message("assistant", output)])


def _explain_prompt_completion(fields: dict[str, Any], problems: Problems) -> Row | None:
    prompt = turns.read(fields.pop("prompt"), "prompt", problems, "user")
    completion = turns.read(fields.pop("completion"), "completion", problems, "assistant")
    system = fields.pop("system", None)
    if prompt is None or completion is None:
        return None
    turns.check(prompt, "prompt", "prompt", problems)
    turns.check(completion, "completion", "completion", problems)
    return MessagesRow([*turns.with_system(prompt, system, "prompt", problems), *completion])


@formats.register("messages")
class Messages:
    """Conversations to imitate, for supervised fine-tuning: the last message is the assistant's.

    Canonical row: {"messages": [{"role", "content"}, …], "metadata"?}. Accepted spellings: OpenAI `messages`,
    ShareGPT `conversations`, Alpaca `instruction`/`input`/`output`, TRL `prompt`/`completion`. Not for raw text to
    continue: there is no `text` spelling, since nothing would say which part is trained on.
    """

    name: ClassVar[str] = "messages"
    row: ClassVar[type[Row]] = MessagesRow
    spellings: ClassVar[tuple[Spelling, ...]] = (
        Spelling("openai", ("messages",), _explain_openai, OpenAI, _quick_openai, keeps_keys=True),
        Spelling("sharegpt", ("conversations",), _explain_sharegpt, ShareGPT, _quick_sharegpt),
        Spelling("alpaca", ("instruction", "output"), _explain_alpaca, Alpaca, _quick_alpaca),
        Spelling(
            "prompt_completion",
            ("prompt", "completion"),
            _explain_prompt_completion,
            PromptCompletion,
            _quick_prompt_completion,
        ),
    )

    @staticmethod
    def turns(row: MessagesRow) -> Iterable[Message]:
        return row.messages
