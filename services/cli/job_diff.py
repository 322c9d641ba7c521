"""What differs between two jobs: configuration, data and code."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from services.cli import display, output
from services.cli.output import Column
from services.client import references

if TYPE_CHECKING:
    from rlhf.trainer.v1.training_job_pb2 import TrainingJob

CONFIG, DATA, CODE = "config", "data", "code"


@dataclass(frozen=True)
class Difference:
    """`part` is CONFIG, DATA or CODE; a side is None where the job has no such field."""

    part: str
    field: str
    one: Any
    other: Any


def differences(one: TrainingJob, other: TrainingJob) -> list[Difference]:
    """By part and field; what names a job or tells how it went is no difference."""
    found = []
    for part, read in ((CONFIG, _config), (DATA, _data), (CODE, _code)):
        left, right = dict(read(one)), dict(read(other))
        for field in sorted(left.keys() | right.keys()):
            if left.get(field) != right.get(field):
                found.append(Difference(part, field, left.get(field), right.get(field)))
    return found


def show(one: TrainingJob, other: TrainingJob, output_format: str) -> None:
    found = differences(one, other)
    if output_format == "json":
        rows = {part: [_as_json(item) for item in found if item.part == part] for part in (CONFIG, DATA, CODE)}
        output.write_json({"jobs": [one.name, other.name], **rows})
    elif found:
        columns = [
            Column("PART", lambda item: item.part),
            Column("FIELD", lambda item: item.field, whole=True),
            Column(references.short(one.name), lambda item: _text(item.one)),
            Column(references.short(other.name), lambda item: _text(item.other)),
        ]
        output.show(output.table(columns, found))
    else:
        output.say("the same configuration, data and code")
    if not (one.software and other.software):
        output.hint("of a job that has not started, or of an earlier release, the code is not known")


def _config(job: TrainingJob) -> Iterator[tuple[str, Any]]:
    yield "algorithm", job.algorithm
    yield "placement.target", job.placement.target
    yield "placement.gpus", job.placement.resources.gpu_count
    yield "priority", job.priority
    yield from _leaves(output.as_json(job).get("params") or {}, "params")


def _data(job: TrainingJob) -> Iterator[tuple[str, Any]]:
    yield "model", references.short(job.base_model)
    if job.resume_from:
        yield "resumes", references.short(job.resume_from)
    yield "model.sha256", job.inputs.base_manifest_sha256
    yield "dataset", references.short(job.dataset_version)
    yield "dataset.sha256", job.inputs.dataset_sha256
    if job.validation_dataset_version:
        yield "validation", references.short(job.validation_dataset_version)
        yield "validation.sha256", job.inputs.validation_dataset_sha256
    for name, sha256 in job.inputs.reward_models.items():
        yield f"reward model {references.short(name)}.sha256", sha256


def _code(job: TrainingJob) -> Iterator[tuple[str, Any]]:
    yield from job.software.items()


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Each plain value or list with its path."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}")
    else:
        yield path, value


def _as_json(item: Difference) -> dict[str, Any]:
    return {"field": item.field, "one": item.one, "other": item.other}


def _text(value: Any) -> str:
    import json

    if isinstance(value, float):
        return display.exact(value)
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)
