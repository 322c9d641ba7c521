"""Training jobs as a person reads them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from services.cli import display, output
from services.cli.jobkit import views
from services.cli.output import Column
from services.client import references

if TYPE_CHECKING:
    from rlhf.trainer.v1.training_job_pb2 import DataForecast, TrainingJob

JOBS = views.columns(
    [
        Column("MODEL", lambda job: references.short(job.base_model)),
        Column("DATASET", lambda job: references.short(job.dataset_version)),
    ],
    [Column("ALGORITHM", lambda job: job.algorithm)],
)


def facts(job: TrainingJob) -> list[tuple[str, str]]:
    slots = job.placement.resources.gpu_count
    placement = job.placement.target + (f", {display.counted(slots, 'GPU or slot', 'GPUs or slots')}" if slots else "")
    inputs = [
        ("algorithm", job.algorithm),
        ("model", references.short(job.base_model)),
        ("resumes", references.short(job.resume_from)),
        ("dataset", references.short(job.dataset_version)),
        ("validation", references.short(job.validation_dataset_version)),
    ]
    where = [
        ("runs on", placement),
        ("priority", str(job.priority or "")),
        ("labels", display.labels(dict(job.labels))),
    ]
    rest = [
        *data_facts(job),
        ("disk", _disk(job)),
        ("software", ", ".join(f"{name} {version}" for name, version in sorted(job.software.items()))),
        ("params", "\n".join(param_lines(output.as_json(job).get("params") or {}))),
    ]
    return views.facts(job, inputs, where, rest)


def data_facts(job: TrainingJob) -> list[tuple[str, str]]:
    """What training makes of the rows, as foreseen; nothing where nobody looked."""
    if not job.HasField("data_forecast"):
        return []
    found = job.data_forecast
    if found.unavailable_reason:
        return [("rows", f"{found.row_count:,}, not counted: {display.one_line(found.unavailable_reason)}")]
    about = "about " if found.sampled else ""
    left = "".join(f"; {about}{count:,} out by {name}" for name, count in sorted(found.left_out.items()))
    sample = f" (estimated from {found.read_row_count:,})" if found.sampled else ""
    tokens = found.tokens
    length = f"a row has {tokens.median:,} at the median, {tokens.p95:,} at 95 %, {tokens.max:,} at most"
    passes = f", {display.number(found.epoch_count)} passes over the rows that are kept"
    return [
        ("rows", f"{about}{found.kept_row_count:,} of {found.row_count:,} kept{left}{sample}"),
        ("tokens", f"{length}; {about}{found.token_count:,} in a pass"),
        ("steps", f"{found.step_count:,}{passes}"),
        ("held out", _held_out(found)),
    ]


def _held_out(found: DataForecast) -> str:
    """Of the rows that validation looks at, those that it can't use."""
    left = ", ".join(f"{count:,} out by {name}" for name, count in sorted(found.validation_left_out.items()))
    return f"{left} of the {found.validation_row_count:,} rows that are looked at" if left else ""


def _disk(job: TrainingJob) -> str:
    """What was foreseen; empty where nothing was."""
    if not job.HasField("disk_forecast"):
        return ""
    found = job.disk_forecast
    free = f" of {display.size(found.free_bytes)} that were free" if found.HasField("free_bytes") else ""
    saves = display.counted(found.save_count, "save", "saves")
    checkpoints = display.counted(found.checkpoint_count, "checkpoint", "checkpoints")
    states = display.counted(found.training_state_count, "training state", "training states")
    return f"at least {display.size(found.needed_bytes)}{free}: {saves}, {checkpoints} and {states} at a time"


def param_lines(values: dict[str, Any], prefix: str = "") -> Iterable[str]:
    """`key = value` as `--set` takes it, by name, nested ones last: a protobuf Struct keeps no order."""
    nested = {key: value for key, value in values.items() if isinstance(value, dict) and value}
    for key in sorted(values.keys() - nested.keys()):
        value = values[key]
        yield f"{prefix}{key} = {display.exact(value) if isinstance(value, float) else json.dumps(value)}"
    for key in sorted(nested):
        yield from param_lines(nested[key], f"{prefix}{key}.")
