"""Prompts with a verifiable answer."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import Any, ClassVar

import msgspec
from msgspec import UNSET, UnsetType

from services.dataset.formats import formats
from services.dataset.reading import alpaca
from services.dataset.reading import conversation as turns
from services.dataset.reading.findings import Problems, Reason, kind
from services.dataset.reading.input_layouts import Source, Spelling, renamed_source
from services.dataset.reading.message import check_text
from services.dataset.reading.rows import Message, PromptRow, Row

PROMPT_KEYS = ("prompt", "question", "problem", "query")
# In order of precedence: where a row has both, `solution` is the way to the `answer`.
ANSWER_KEYS = ("answer", "ground_truth", "target", "solution")


def answer_text(value: Any) -> str | None:
    """A string as it is, a finite number as its shortest text (3.0 is "3"), None for anything else."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if isinstance(value, int):
        return str(value)
    return repr(value).removesuffix(".0") if math.isfinite(value) else None


class RewardModel(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    ground_truth: str | int | float
    style: str | UnsetType = UNSET


class Verl(Source):
    prompt: str | list[Message]
    reward_model: RewardModel


def _quick(source: Any, given: str | float | None) -> PromptRow | None:
    prompt = [Message("user", source.prompt)] if isinstance(source.prompt, str) else source.prompt
    answer = answer_text(given)
    if given is not None and (not answer or answer.isspace() or "\0" in answer):
        return None
    return PromptRow(prompt, answer) if turns.sound(prompt, "prompt") else None


def _quick_answered(source: Any) -> PromptRow | None:
    return _quick(source, source.answer)


def _quick_asked(source: Any) -> PromptRow | None:
    return _quick(source, None)


def _quick_verl(source: Any) -> PromptRow | None:
    row = _quick(source, source.reward_model.ground_truth)
    if row is not None and source.reward_model.style is not UNSET:
        row.metadata = {"reward_model": {"style": source.reward_model.style}}
    return row


def _explain(prompt_key: str, answer_key: str | None, fields: dict[str, Any], problems: Problems) -> Row | None:
    prompt = turns.read(fields.pop(prompt_key), prompt_key, problems, "user")
    system = fields.pop("system", None)
    answer = _answer(fields.pop(answer_key), answer_key, problems) if answer_key else None
    if prompt is None:
        return None
    turns.check(prompt, "prompt", prompt_key, problems)
    return PromptRow(turns.with_system(prompt, system, prompt_key, problems), answer)


def _explain_verl(fields: dict[str, Any], problems: Problems) -> Row | None:
    reward_model = fields.pop("reward_model")
    if not isinstance(reward_model, dict):
        problems.add("reward_model", Reason.WRONG_TYPE, f"is {kind(reward_model)}; an object expected")
        return None
    answer = _answer(reward_model.get("ground_truth"), "reward_model.ground_truth", problems)
    row = _explain("prompt", None, fields, problems)
    rest = {key: value for key, value in reward_model.items() if key != "ground_truth" and value is not None}
    if rest:
        fields["reward_model"] = rest
    return PromptRow(row.prompt, answer) if isinstance(row, PromptRow) else None


def _answer(value: Any, field: str, problems: Problems) -> str | None:
    answer = answer_text(value)
    if answer is not None:
        check_text(answer, field, problems)
    elif value is None:
        problems.add(field, Reason.MISSING, "is missing; a string or a number expected")
    elif isinstance(value, float):
        problems.add(field, Reason.INVALID_NUMBER, f"is {value}; a finite number or a string expected")
    else:
        problems.add(field, Reason.WRONG_TYPE, f"is {kind(value)}; a string or a number expected")
    return answer


def _plain(prompt_key: str, answer_key: str | None) -> Spelling:
    """The spelling with these two keys, e.g. `question+answer`."""
    fields: dict[str, tuple[str, Any]] = {"prompt": (prompt_key, str | list[Message])}
    if answer_key:
        fields["answer"] = (answer_key, str | int | float)
    names = tuple(key for key, _ in fields.values())
    return Spelling(
        "+".join(names),
        names,
        functools.partial(_explain, prompt_key, answer_key),
        renamed_source("Plain_" + "_".join(names), fields),
        _quick_answered if answer_key else _quick_asked,
    )


def _explain_instruction(answer_key: str, fields: dict[str, Any], problems: Problems) -> Row | None:
    instruction = fields["instruction"]
    prompt = alpaca.prompt(fields, problems)
    answer = _answer(fields.pop(answer_key), answer_key, problems)
    if prompt is None:
        return None
    check_text(instruction, "instruction", problems)
    turns.check(prompt, "prompt", "prompt", problems)
    return PromptRow(prompt, answer)


def _instruction(answer_key: str) -> Spelling:
    """Alpaca's and Dolly's fields, the answer being what a reward compares with. Read row by row."""
    keys = ("instruction", answer_key)
    return Spelling(
        "+".join(keys), keys, functools.partial(_explain_instruction, answer_key), Source, lambda source: None
    )


@formats.register("prompt")
class Prompt:
    """Prompts to answer, with an answer that a reward can check, for reinforcement learning.

    Canonical row: {"prompt": [messages], "answer": string or null, "metadata"?}. Accepted spellings: verl
    (`prompt`, `reward_model.ground_truth`), and `prompt`, `question`, `problem` or `query` (a string or a message list)
    with `answer`, `ground_truth`, `target` or `solution` (a string or a number), or with none of them: such rows are
    valid and counted, and an answer of null; a reward that compares with an answer cannot use them. Besides
    `query`/`response`, `input`/`output`, Alpaca's `instruction`/`input`/`output` and Dolly's
    `instruction`/`context`/`response`. Not for answers that are lists or objects.
    """

    name: ClassVar[str] = "prompt"
    row: ClassVar[type[Row]] = PromptRow
    spellings: ClassVar[tuple[Spelling, ...]] = (
        Spelling("verl", ("prompt", "reward_model"), _explain_verl, Verl, _quick_verl),
        *(_plain(prompt, answer) for prompt in PROMPT_KEYS for answer in ANSWER_KEYS),
        _plain("query", "response"),
        _instruction("output"),
        _instruction("response"),
        _plain("input", "output"),
        *(_plain(prompt, None) for prompt in PROMPT_KEYS),
    )

    @staticmethod
    def turns(row: PromptRow) -> Iterable[Message]:
        return row.prompt
