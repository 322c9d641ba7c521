"""Preference pairs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from msgspec import UNSET, UnsetType

from services.dataset.formats import formats
from services.dataset.reading import alpaca, hh_text
from services.dataset.reading import conversation as turns
from services.dataset.reading.findings import Problems, Reason
from services.dataset.reading.input_layouts import Source, Spelling
from services.dataset.reading.message import check_text
from services.dataset.reading.rows import Message, PreferenceRow, Row


class Explicit(Source):
    prompt: str | list[Message]
    chosen: str | list[Message]
    rejected: str | list[Message]


class Implicit(Source):
    chosen: list[Message]
    rejected: list[Message]


class Alpaca(Source):
    instruction: str
    chosen: str
    rejected: str
    input: str | UnsetType | None = UNSET
    system: str | UnsetType | None = UNSET


def _side(value: str | list[Message]) -> list[Message]:
    return [Message("assistant", value)] if isinstance(value, str) else value


def _checked(prompt: list[Message], chosen: list[Message], rejected: list[Message]) -> PreferenceRow | None:
    if not turns.sound(prompt, "prompt") or chosen == rejected:
        return None
    if not turns.sound(chosen, "completion") or not turns.sound(rejected, "completion"):
        return None
    return PreferenceRow(prompt, chosen, rejected)


def _quick_explicit(source: Explicit) -> PreferenceRow | None:
    prompt = [Message("user", source.prompt)] if isinstance(source.prompt, str) else source.prompt
    return _checked(prompt, _side(source.chosen), _side(source.rejected))


def _quick_implicit(source: Implicit) -> PreferenceRow | None:
    return _checked(*hh_text.split(source.chosen, source.rejected))


def _quick_alpaca(source: Alpaca) -> PreferenceRow | None:
    if not turns.sound([Message("user", source.instruction)], "prompt"):
        return None
    user = Message("user", alpaca.request(source.instruction, source.input or None))
    start = [Message("system", source.system)] if source.system else []
    return _checked([*start, user], _side(source.chosen), _side(source.rejected))


def _row(prompt: list[Message], chosen: list[Message], rejected: list[Message], problems: Problems) -> Row:
    turns.check(prompt, "prompt", "prompt", problems)
    turns.check(chosen, "completion", "chosen", problems)
    turns.check(rejected, "completion", "rejected", problems)
    if chosen == rejected:
        problems.add("rejected", Reason.CHOSEN_IS_REJECTED, "equals chosen; a pair needs a better and a worse answer")
    return PreferenceRow(prompt, chosen, rejected)


def _sides(fields: dict[str, Any], problems: Problems) -> tuple[list[Message], list[Message]] | None:
    chosen = turns.read(fields.pop("chosen"), "chosen", problems, "assistant")
    rejected = turns.read(fields.pop("rejected"), "rejected", problems, "assistant")
    return None if chosen is None or rejected is None else (chosen, rejected)


def _explain_prompted(prompt: list[Message] | None, key: str, fields: dict[str, Any], problems: Problems) -> Row | None:
    """`chosen` and `rejected` are answers, or whole conversations that repeat the prompt (as UltraFeedback's do)."""
    sides, system = _sides(fields, problems), fields.pop("system", None)
    if prompt is None or sides is None:
        return None
    chosen, rejected = sides
    if hh_text.repeats_prompt(chosen) and hh_text.repeats_prompt(rejected):
        repeated, chosen, rejected = hh_text.split(chosen, rejected)
        if not hh_text.same_request(prompt, repeated):
            problems.add(key, Reason.CONFLICT, "differs from the prompt that chosen and rejected begin with")
        prompt = repeated
    return _row(turns.with_system(prompt, system, key, problems), chosen, rejected, problems)


def _explain_explicit(fields: dict[str, Any], problems: Problems) -> Row | None:
    prompt = turns.read(fields.pop("prompt"), "prompt", problems, "user")
    return _explain_prompted(prompt, "prompt", fields, problems)


def _explain_sharegpt(fields: dict[str, Any], problems: Problems) -> Row | None:
    prompt = turns.read(fields.pop("conversations"), "conversations", problems)
    return _explain_prompted(prompt, "conversations", fields, problems)


def _explain_alpaca(fields: dict[str, Any], problems: Problems) -> Row | None:
    instruction = fields["instruction"]
    prompt, sides = alpaca.prompt(fields, problems), _sides(fields, problems)
    if prompt is None or sides is None:
        return None
    check_text(instruction, "instruction", problems)
    return _row(prompt, *sides, problems)


def _explain_implicit(fields: dict[str, Any], problems: Problems) -> Row | None:
    chosen, rejected, system = fields.pop("chosen"), fields.pop("rejected"), fields.pop("system", None)
    if isinstance(chosen, str) and isinstance(rejected, str):
        sides = hh_text.parse(chosen, rejected)
    else:
        sides = turns.read(chosen, "chosen", problems), turns.read(rejected, "rejected", problems)
    if sides[0] is None or sides[1] is None:
        return None
    if sides[0] == sides[1]:
        problems.add("rejected", Reason.CHOSEN_IS_REJECTED, "equals chosen; a pair needs a better and a worse answer")
        return None
    prompt, better, worse = hh_text.split(sides[0], sides[1])
    if not prompt:
        wanted = "add a prompt, or begin both with the same messages"
        problems.add("chosen", Reason.NO_COMMON_PROMPT, f"has no beginning in common with rejected; {wanted}")
        return None
    return _row(turns.with_system(prompt, system, "chosen", problems), better, worse, problems)


@formats.register("preference")
class Preference:
    """Pairs of a better and a worse answer to one prompt, for preference optimisation.

    Canonical row: {"prompt": [messages], "chosen": [messages], "rejected": [messages], "metadata"?}. Accepted
    spellings: TRL `prompt`/`chosen`/`rejected` with strings or message lists (also lists that repeat the prompt),
    Alpaca `instruction`/`chosen`/`rejected`, ShareGPT `conversations`/`chosen`/`rejected`, and TRL's implicit prompt:
    `chosen`/`rejected` whose common beginning is the prompt (message lists, Anthropic's "\\n\\nHuman:" dialogues, or
    plain strings). Not for scores or rankings of more than two answers.
    """

    name: ClassVar[str] = "preference"
    row: ClassVar[type[Row]] = PreferenceRow
    spellings: ClassVar[tuple[Spelling, ...]] = (
        Spelling("explicit_prompt", ("prompt", "chosen", "rejected"), _explain_explicit, Explicit, _quick_explicit),
        Spelling("sharegpt", ("conversations", "chosen", "rejected"), _explain_sharegpt, Source, lambda _: None),
        Spelling("alpaca", ("instruction", "chosen", "rejected"), _explain_alpaca, Alpaca, _quick_alpaca),
        Spelling("implicit_prompt", ("chosen", "rejected"), _explain_implicit, Implicit, _quick_implicit),
    )

    @staticmethod
    def turns(row: PreferenceRow) -> Iterable[Message]:
        return [*row.prompt, *row.chosen, *row.rejected]
