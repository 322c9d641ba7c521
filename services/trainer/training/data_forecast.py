"""What training makes of a dataset, foreseen: rows kept and left out, tokens, steps. Pure.

A row is left out where it has more tokens than the plan's `max_tokens`; nothing is cut. Counts of a sample are scaled
to the whole version and rounded, and `sampled` says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from services.mesh.errors import Violation
from services.mesh.jobs.warnings import JobWarning
from services.trainer.runs.health import LEFT_OUT_SHARE
from services.trainer.training.launch_plan import LaunchPlan
from services.trainer.training.tasks import RlTask
from services.trainer.training.token_lengths import Lengths

# Of the rows; the length that keeps as many is what a remedy names.
KEPT_SHARE = 0.95
NO_THOUGHTS = "the model's chat template writes no thoughts"
THOUGHTS_REMEDY = "take a model whose chat template writes them, or put them into content, such as <think>…</think>"
_OTHER_FORM = "bring their turns into the form that it takes"


@dataclass(frozen=True)
class TokenQuantiles:
    """Tokens of a row, of all that were read: also of those that are left out."""

    median: int
    p95: int
    max: int


@dataclass(frozen=True)
class DataForecast:
    """See `rlhf.trainer.v1.DataForecast`. `unavailable_reason` says why nothing else is known."""

    row_count: int = 0
    read_row_count: int = 0
    sampled: bool = False
    kept_row_count: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    tokens: TokenQuantiles | None = None
    token_count: int = 0
    step_count: int = 0
    epoch_count: float = 0.0
    validation_row_count: int = 0
    validation_left_out: dict[str, int] = field(default_factory=dict)
    unavailable_reason: str = ""


@dataclass(frozen=True)
class Bound:
    """What leaves a row out, and how many rows a step takes, by the parameters that say so."""

    length: str
    max_tokens: int
    step: str
    step_rows: int
    # What `max_tokens` may be raised to; None where nobody knows.
    room: int | None

    @classmethod
    def of(cls, plan: LaunchPlan, params: Any, context: int | None) -> Bound:
        bound = (plan.task.max_tokens_param, plan.max_tokens)
        if isinstance(plan.task, RlTask):
            room = None if context is None else context - params.response_tokens
            return cls(*bound, "prompts_per_step", params.prompts_per_step, room)
        return cls(*bound, "batch_size", params.batch_size, context)


def forecast(plan: LaunchPlan, bound: Bound, rows: int, lengths: Lengths) -> DataForecast:
    """Of the training rows; `rows` are those of the version."""
    kept = [tokens for tokens in lengths.tokens if tokens <= bound.max_tokens]
    scale = rows / max(1, lengths.read)
    kept_rows, refused = round(len(kept) * scale), round(lengths.refused * scale)
    left_out = {bound.length: rows - kept_rows - refused if lengths.read else 0, "chat_template": refused}
    return DataForecast(
        row_count=rows,
        read_row_count=lengths.read,
        sampled=not lengths.whole,
        kept_row_count=kept_rows,
        left_out={name: count for name, count in left_out.items() if count > 0},
        tokens=quantiles(lengths.tokens),
        token_count=round(sum(kept) * scale),
        step_count=plan.total_steps,
        epoch_count=plan.total_steps * bound.step_rows / kept_rows if kept_rows else 0.0,
    )


def quantiles(tokens: Sequence[int]) -> TokenQuantiles | None:
    if not tokens:
        return None
    return TokenQuantiles(keeping(tokens, 0.5), keeping(tokens, 0.95), max(tokens))


def keeping(tokens: Sequence[int], share: float) -> int:
    """The least length that at least `share` of the rows do not exceed."""
    ordered = sorted(tokens)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def violations(found: DataForecast, bound: Bound, lengths: Lengths) -> list[Violation]:
    """What the run would surely die of as soon as it has read its rows; of a sample there are only `warnings`."""
    if found.sampled:
        return []
    if lengths.refused and not lengths.tokens:
        message = f"the model's chat template refuses every row: {lengths.refusal}; {_OTHER_FORM}"
        return [Violation("dataset_version", message)]
    if not lengths.tokens or found.kept_row_count >= bound.step_rows:
        return []
    remedy = _longer(bound, lengths.tokens)
    if found.kept_row_count == 0:
        shortest = min(lengths.tokens)
        message = f"all {lengths.read} rows have more than {bound.max_tokens} tokens, the shortest {shortest}: {remedy}"
        return [Violation(f"params.{bound.length}", message)]
    message = (
        f"a step takes {bound.step_rows} rows, and {_of(found.kept_row_count, found.row_count)} have at most"
        f" {bound.length} ({bound.max_tokens}) tokens: {remedy}, or make steps smaller"
    )
    return [Violation(f"params.{bound.step}", message)]


def warnings(found: DataForecast, bound: Bound, lengths: Lengths) -> list[JobWarning]:
    """What the run would do, and hardly anybody wants."""
    why = {
        bound.length: (f"have more than {bound.length} ({bound.max_tokens}) tokens", _longer(bound, lengths.tokens)),
        "chat_template": (f"are refused by the model's chat template ({lengths.refusal})", _OTHER_FORM),
    }
    passes = f"the job's {found.step_count} steps are {found.epoch_count:.3g} passes over the others"
    if not found.kept_row_count:
        passes = "of those that were read none is kept, and a run in which none is fails"
    about = "about " if found.sampled else ""
    warnings = []
    if lengths.silenced:
        silenced = round(lengths.silenced * found.row_count / lengths.read)
        rows = f"{about}{_of(silenced, found.row_count)} training rows"
        message = f"{rows} have reasoning_content, which is not trained: {NO_THOUGHTS}"
        warnings.append(JobWarning(reason="ROWS_CHANGED", message=message, remedy=THOUGHTS_REMEDY))
    for name, count in found.left_out.items():
        if count > LEFT_OUT_SHARE * found.row_count:
            rows = f"{about}{_of(count, found.row_count)} training rows ({count / found.row_count:.0%})"
            message = f"{rows} {why[name][0]} and are left out; {passes}"
            warnings.append(JobWarning(reason="ROWS_LEFT_OUT", message=message, remedy=why[name][1], key=name))
    return warnings


def with_validation(
    found: DataForecast, plan: LaunchPlan, lengths: Lengths, context: int | None
) -> tuple[DataForecast, list[JobWarning]]:
    """With the validation rows that are asked, of which `lengths` are."""
    answers = 0 if plan.validation is None else plan.validation.max_new_tokens
    most = _validation_bound(plan, answers, context)
    long = sum(tokens > most for tokens in lengths.tokens) if most is not None else 0
    what = "context" if plan.pair_validation is None else "max_length"
    left_out = {name: count for name, count in ((what, long), ("chat_template", lengths.refused)) if count}
    read = lengths.read
    forecast = replace(found, validation_row_count=read, validation_left_out=left_out)
    if not left_out:
        return forecast, []
    return forecast, [_validation_warning(plan, lengths, read - long - lengths.refused, answers, context)]


def _validation_bound(plan: LaunchPlan, answers: int, context: int | None) -> int | None:
    if plan.pair_validation is not None:
        return plan.pair_validation.max_tokens
    return None if context is None else context - answers


def _validation_warning(plan: LaunchPlan, lengths: Lengths, kept: int, answers: int, context: int | None) -> JobWarning:
    what = "no validation row is" if kept == 0 else f"{_of(lengths.read - kept, lengths.read)} validation rows are not"
    if lengths.refused:
        message = f"{what} usable: the chat template refuses {lengths.refused}: {lengths.refusal}"
        return JobWarning(reason="VALIDATION_ROWS_LEFT_OUT", message=message, remedy=_OTHER_FORM)
    if plan.pair_validation is not None:
        message = f"{what} judged: a side is longer than max_length ({plan.pair_validation.max_tokens}) tokens"
        remedy = f"set max_length to {keeping(lengths.tokens, KEPT_SHARE)} to keep 95 % of them"
        return JobWarning(reason="VALIDATION_ROWS_LEFT_OUT", message=message, remedy=remedy)
    message = (
        f"{what} answered: prompt and validation.max_new_tokens ({answers}) exceed the model's context of {context}"
    )
    room = (context or 0) - keeping(lengths.tokens, KEPT_SHARE)
    remedy = (
        f"set validation.max_new_tokens to {room} to have 95 % of them answered"
        if room > 0
        else "validate on shorter prompts, or start from a model with a longer context"
    )
    return JobWarning(reason="VALIDATION_ROWS_LEFT_OUT", message=message, remedy=remedy)


def _longer(bound: Bound, tokens: Sequence[int]) -> str:
    """The remedy: the length that keeps nearly all, as far as the model has it."""
    if not tokens:
        return ""
    wanted, room = keeping(tokens, KEPT_SHARE), bound.room
    if room is None or wanted <= room:
        return f"set {bound.length} to {wanted} to keep 95 % of them"
    within = sum(count <= room for count in tokens) / len(tokens)
    what = f"{wanted} would keep 95 % of them, and the model's context has room for {bound.length} {room}, which keeps"
    return f"{what} {within:.0%}; cut the rows into shorter ones, or start from a model with a longer context"


def _of(part: int, whole: int) -> str:
    return f"{part:,} of {whole:,}"
