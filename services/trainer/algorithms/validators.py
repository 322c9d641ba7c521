"""Checks that several algorithms share: what would make a run fail or mislead, by field.

Parameters and facts may be known in part (services/mesh/validation/partial.py): each rule is asked for itself, by
`collect_violations`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from services import rewards
from services.mesh.errors import Violation
from services.mesh.validation.partial import collect_violations
from services.trainer.algorithms.common_params import RewardSettings, RunParams, TrainingParams
from services.trainer.algorithms.memory import ForwardPass, Taken, least, total
from services.trainer.algorithms.overrides import check_overrides
from services.trainer.algorithms.validation_series import check_metric
from services.trainer.training.launch_plan import JobFacts

# A validation file holds questions with answers, or conversations whose last turn is the expected answer.
VALIDATION_FORMATS = ("prompt", "messages")


def check_common(
    params: RunParams,
    formats: tuple[str, ...],
    facts: JobFacts,
    batch_field: str,
    validation_formats: tuple[str, ...] = VALIDATION_FORMATS,
) -> list[Violation]:
    """What holds for every algorithm: formats, a full batch, a device that has what is asked for, a reward."""
    return collect_violations(
        lambda: _check_format(formats, facts),
        lambda: _check_validation_format(validation_formats, facts),
        lambda: _check_full_batch(batch_field, getattr(params, batch_field), facts),
        lambda: _check_device(params, facts),
        lambda: _check_targets(params),
        lambda: check_overrides(params),
        lambda: check_reward(params.reward, facts, "reward") if isinstance(params, TrainingParams) else [],
        lambda: check_metric(params, facts),
    )


def _check_format(formats: tuple[str, ...], facts: JobFacts) -> list[Violation]:
    if facts.train_format in formats:
        return []
    known = " or ".join(formats)
    return [Violation("dataset", f"is of format {facts.train_format!r}; this algorithm wants {known}")]


def _check_validation_format(formats: tuple[str, ...], facts: JobFacts) -> list[Violation]:
    if facts.validation_format in (None, *formats):
        return []
    known = " or ".join(formats)
    return [Violation("validation_dataset", f"is of format {facts.validation_format!r}; {known} is wanted")]


def _check_full_batch(field: str, size: int, facts: JobFacts) -> list[Violation]:
    if size <= facts.train_rows:
        return []
    return [Violation(field, f"must be at most the {facts.train_rows} rows of the dataset")]


def check_reward(reward: RewardSettings | None, facts: JobFacts, field: str) -> list[Violation]:
    """Everything that is wrong with a reward's name or params, under `field`."""
    return [] if reward is None else rewards.read(reward.name, reward.params, facts.reward_site, field)[1]


def _check_device(params: RunParams, facts: JobFacts) -> list[Violation]:
    def attention() -> list[Violation]:
        if facts.device != "cpu" or params.attention != "flash_attention_2":
            return []
        return [Violation("attention", "must be auto or sdpa on a machine without a GPU")]

    def offload() -> list[Violation]:
        if facts.device != "cpu" or params.offload == "none":
            return []
        return [Violation("offload", "must be none on a machine without a GPU: there is nothing to offload from")]

    def sequence_parallel() -> list[Violation]:
        if facts.device == "cpu" and params.sequence_parallel > 1:
            return [Violation("sequence_parallel", "must be 1 on a machine without a GPU")]
        if params.sequence_parallel == 1 or facts.slots % params.sequence_parallel == 0:
            return []
        return [Violation("sequence_parallel", f"must divide the job's {facts.slots} slots")]

    return collect_violations(attention, offload, sequence_parallel)


def _check_targets(params: RunParams) -> list[Violation]:
    """The one free text that verl's configuration is given, in which OmegaConf would put something else in its place:
    an environment variable, for one."""
    targets = params.lora.target_modules if params.lora is not None else []
    if not any("${" in name for name in ([targets] if isinstance(targets, str) else targets)):
        return []
    return [Violation("lora.target_modules", "must not hold ${; name the layers as they are called in the model")]


def check_divides(field_name: str, size: int, number: int, what: str) -> list[Violation]:
    if number % size == 0:
        return []
    small = [size for size in range(1, math.isqrt(number) + 1) if number % size == 0]
    sizes = sorted({*small, *(number // size for size in small)})
    return [Violation(field_name, f"must divide {what} ({number}): one of {', '.join(map(str, sizes))}")]


def check_share(field_name: str, size: int | None, rows: int, facts: JobFacts, what: str) -> list[Violation]:
    """That forward passes of `size` divide a slot's share of `rows`; `what` names the share."""
    # That the rows do not divide among the slots is told for itself.
    if size is None or rows % facts.slots:
        return []
    return check_divides(field_name, size, rows // facts.slots, what)


def check_length(field_name: str, tokens: int | None, facts: JobFacts, made_of: str = "") -> list[Violation]:
    """`made_of` says what adds up to `tokens`, where that is more than the field alone; None is fitted to the model."""
    if tokens is None or facts.context_length is None or tokens <= facts.context_length:
        return []
    message = f"{tokens} tokens{made_of} are more than the model's context of {facts.context_length}"
    return [Violation(field_name, message)]


def check_memory(
    params: RunParams, facts: JobFacts, one_pass: ForwardPass, beside: Sequence[Taken] = ()
) -> list[Violation]:
    """That a slot has what the job takes at least (memory.py); what it lets through may still run out of memory."""
    if facts.model_parameters is None or facts.memory_bytes is None:
        return []
    taken = least(params, facts, one_pass, beside)
    if total(taken) <= facts.memory_bytes:
        return []
    parts = ", ".join(f"{one.size / 2**30:.1f} {one.what}" for one in taken if one.size)
    fields = dict.fromkeys(field for one in sorted(taken, key=lambda one: -one.size) for field in one.helps)
    offload = ["offload"] if facts.device == "cuda" and params.offload != "all" else []
    helps = ", ".join([*fields, *offload, "more slots", "a smaller model"])
    message = f"a slot has {facts.memory_bytes / 2**30:.1f} GiB, and the job takes at least {total(taken) / 2**30:.1f}"
    return [Violation("slots", f"{message} ({parts}). What helps: {helps}")]
