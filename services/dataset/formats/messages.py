"""Supervised fine-tuning."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import msgspec
from msgspec import UNSET, UnsetType

from services.dataset.formats import formats
from services.dataset.reading import alpaca
from services.dataset.reading import conversation as turns
from services.dataset.reading.findings import Problems
from services.dataset.reading.input_layouts import Source, Spelling, renamed_source
from services.dataset.reading.message import ROLES, check_text
from services.dataset.reading.rows import Message, MessagesRow, Row


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


class Dolly(Source):
    instruction: str
    response: str
    context: str | UnsetType | None = UNSET


# A request and its answer, under the names that data sets give them, in order of precedence.
PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
    ("question", "response"),
    ("query", "response"),
    ("query", "answer"),
    ("problem", "solution"),
    ("input", "output"),
)


def _checked(messages: list[Message]) -> MessagesRow | None:
    return MessagesRow(messages) if turns.sound(messages, "conversation") else None


def _quick_openai(source: OpenAI) -> MessagesRow | None:
    return _checked(source.messages)


def _quick_sharegpt(source: ShareGPT) -> MessagesRow | None:
    return _checked([Message(ROLES[turn.speaker], turn.value) for turn in source.conversations])


def _quick_alpaca(source: Alpaca) -> MessagesRow | None:
    if not turns.sound([Message("user", source.instruction)], "prompt"):
        return None
    user = Message("user", alpaca.request(source.instruction, source.input or None))
    start = [Message("system", source.system)] if source.system else []
    return _checked([*start, user, Message("assistant", source.output)])


def _quick_dolly(source: Dolly) -> MessagesRow | None:
    if not turns.sound([Message("user", source.instruction)], "prompt"):
        return None
    user = Message("user", alpaca.request(source.instruction, source.context or None))
    return _checked([user, Message("assistant", source.response)])


def _quick_pair(source: Any) -> MessagesRow | None:
    prompt, completion = source.prompt, source.completion
    start = [Message("user", prompt)] if isinstance(prompt, str) else prompt
    end = [Message("assistant", completion)] if isinstance(completion, str) else completion
    if not turns.sound(start, "prompt") or not turns.sound(end, "completion"):
        return None
    return MessagesRow([*(turns.untrained(start) if len(start) > 1 else start), *end])


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


def _explain_instruction(answer_key: str, fields: dict[str, Any], problems: Problems) -> Row | None:
    instruction = fields["instruction"]
    prompt = alpaca.prompt(fields, problems)
    output = alpaca.text(fields, answer_key, problems)
    if prompt is None or output is None:
        return None
    check_text(instruction, "instruction", problems)
    turns.check(prompt, "prompt", "prompt", problems)
    check_text(output, answer_key, problems)
    return MessagesRow([*prompt, Message("assistant", output)])


def _explain_pair(prompt_key: str, answer_key: str, fields: dict[str, Any], problems: Problems) -> Row | None:
    prompt = turns.read(fields.pop(prompt_key), prompt_key, problems, "user")
    completion = turns.read(fields.pop(answer_key), answer_key, problems, "assistant")
    # OpenOrca's name is the other one.
    system = fields.pop("system" if "system" in fields else "system_prompt", None)
    if prompt is None or completion is None:
        return None
    turns.check(prompt, "prompt", prompt_key, problems)
    turns.check(completion, "completion", answer_key, problems)
    # As in TRL, only the completion is trained.
    start = turns.untrained(turns.with_system(prompt, system, prompt_key, problems))
    return MessagesRow([*start, *completion])


def _pair(prompt_key: str, answer_key: str) -> Spelling:
    text = str | list[Message]
    return Spelling(
        f"{prompt_key}+{answer_key}" if prompt_key != "prompt" else f"prompt_{answer_key}",
        (prompt_key, answer_key),
        functools.partial(_explain_pair, prompt_key, answer_key),
        renamed_source(
            f"Pair_{prompt_key}_{answer_key}", {"prompt": (prompt_key, text), "completion": (answer_key, text)}
        ),
        _quick_pair,
    )


@formats.register("messages")
class Messages:
    """Conversations to imitate, for supervised fine-tuning: the last message is the assistant's.

    Canonical row: {"messages": [{"role", "content"}, …], "metadata"?}; a message may have `reasoning_content`, `name`
    and, where it is not to be trained, `weight` 0. Accepted spellings: OpenAI `messages`,
    ShareGPT `conversations`, Alpaca `instruction`/`input`/`output`, Dolly `instruction`/`context`/`response`, TRL
    `prompt`/`completion` (only the completion is trained), and `question`/`answer`, `query`/`response`,
    `problem`/`solution`, `input`/`output` and the like, alike. Not for raw text to continue: there is no `text`
    spelling, since nothing would say which part is trained on.
    """

    name: ClassVar[str] = "messages"
    row: ClassVar[type[Row]] = MessagesRow
    spellings: ClassVar[tuple[Spelling, ...]] = (
        Spelling("openai", ("messages",), _explain_openai, OpenAI, _quick_openai, keeps_keys=True),
        Spelling("sharegpt", ("conversations",), _explain_sharegpt, ShareGPT, _quick_sharegpt),
        Spelling(
            "alpaca",
            ("instruction", "output"),
            functools.partial(_explain_instruction, "output"),
            Alpaca,
            _quick_alpaca,
        ),
        Spelling(
            "dolly",
            ("instruction", "response"),
            functools.partial(_explain_instruction, "response"),
            Dolly,
            _quick_dolly,
        ),
        *(_pair(prompt, answer) for prompt, answer in PAIRS),
    )

    @staticmethod
    def turns(row: MessagesRow) -> Iterable[Message]:
        return row.messages
