"""Everything that can be wrong with a training job, found at once and before anything is started."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Protocol

from services.mesh import names, params
from services.mesh.errors import InvalidArgument, NotFound, Violation
from services.mesh.labels import check_labels
from services.trainer.algorithms import Algorithm, algorithms
from services.trainer.entities import BaseModel, DatasetVersion, NewTrainingJob, TrainingSpec
from services.trainer.plan import JobFacts
from services.trainer.rewards import rewards
from services.trainer.runners import TARGETS

MAX_PRIORITY = 100


class LookUp(Protocol):
    """Where the facts come from. Each raises InvalidArgument or NotFound with a text for the caller."""

    async def dataset_version(self, name: str) -> DatasetVersion: ...

    async def base_model(self, reference: str) -> BaseModel: ...


@dataclass(frozen=True)
class Site:
    """What the place where jobs run has to offer."""

    device: str
    slots: int


async def check(new: NewTrainingJob, site: Site, look_up: LookUp) -> TrainingSpec:
    """The job with everything filled in. Raises InvalidArgument with every violation."""
    found = _check_form(new, site)
    algorithm, parsed = _parse(new, found)
    base, train, validation = await asyncio.gather(
        _found(look_up.base_model(new.base_model), "base_model", found),
        _found(look_up.dataset_version(new.dataset_version), "dataset_version", found),
        _validation(new, look_up, found),
    )
    if algorithm is not None and parsed is not None and base is not None and train is not None:
        facts = _facts(new, site, base, train, validation)
        found += [_placed(v) for v in algorithm.check(parsed, facts)]
        found += _check_answers(algorithm, parsed, train)
    if found:
        raise InvalidArgument(v if v.field in ("parent", "training_job_id") else v.under("training_job") for v in found)
    assert base is not None and train is not None and parsed is not None
    return TrainingSpec(
        algorithm=new.algorithm,
        base_model=base.name,
        base_manifest_sha256=base.manifest_sha256,
        parameter_count=base.parameter_count,
        context_length=base.context_length,
        dataset_version=train.name,
        train_rows=train.row_count,
        validation_dataset_version=validation.name if validation else "",
        validation_rows=validation.row_count if validation else 0,
        params=params.to_json(parsed),
        target=new.target or "local",
        slots=new.gpu_count or 1,
        labels=new.labels,
    )


def _facts(
    new: NewTrainingJob, site: Site, base: BaseModel, train: DatasetVersion, validation: DatasetVersion | None
) -> JobFacts:
    return JobFacts(
        device="cuda" if site.device == "cuda" else "cpu",
        slots=new.gpu_count or 1,
        train_format=train.format,
        train_rows=train.row_count,
        validation_format=validation.format if validation else None,
        validation_rows=validation.row_count if validation else 0,
        context_length=base.context_length or None,
        model_parameters=base.parameter_count or None,
    )


def _check_form(new: NewTrainingJob, site: Site) -> list[Violation]:
    found = names.check_new_id(new.id, "training_job_id") + check_labels(new.labels, "labels")
    if names.match(names.PROJECT, new.parent) is None:
        found.append(Violation("parent", f"must be of the form {names.PROJECT}"))
    if abs(new.priority) > MAX_PRIORITY:
        found.append(Violation("priority", f"must be from -{MAX_PRIORITY} to {MAX_PRIORITY} (got {new.priority})"))
    if new.target not in ("", *TARGETS):
        found.append(Violation("placement.target", f"unknown target {new.target!r}; one of {', '.join(TARGETS)}"))
    if not 0 <= new.gpu_count <= site.slots:
        found.append(Violation("placement.resources.gpu_count", f"must be from 1 to {site.slots}, what there is"))
    return found


def _parse(new: NewTrainingJob, found: list[Violation]) -> tuple[type[Algorithm] | None, Any]:
    try:
        algorithm = algorithms.get(new.algorithm)
        return algorithm, params.parse(algorithm.Params, new.params)
    except InvalidArgument as error:
        found += error.violations
        return None, None


async def _validation(new: NewTrainingJob, look_up: LookUp, found: list[Violation]) -> DatasetVersion | None:
    if not new.validation_dataset_version:
        return None
    name = new.validation_dataset_version
    return await _found(look_up.dataset_version(name), "validation_dataset_version", found)


async def _found(pending: Any, field: str, found: list[Violation]) -> Any:
    try:
        return await pending
    except InvalidArgument as error:
        found += [Violation(field, violation.description) for violation in error.violations]
    except NotFound as error:
        found.append(Violation(field, str(error)))
    return None


def _check_answers(algorithm: type[Algorithm], parsed: Any, train: DatasetVersion) -> list[Violation]:
    """A reward that compares with an answer gives 0 to a row without one, and the model learns from it."""
    if not algorithm.needs_reward or train.answered_row_count is None:
        return []
    missing = train.row_count - train.answered_row_count
    if not missing or parsed.reward.name not in rewards.names() or not rewards.get(parsed.reward.name).needs_answer:
        return []
    message = f"{missing} of its {train.row_count} rows have no answer, which reward {parsed.reward.name!r} needs"
    return [Violation("dataset_version", message)]


def _placed(violation: Violation) -> Violation:
    """An algorithm's violation, under the field of the training job that it is about."""
    field = {
        "dataset": "dataset_version",
        "validation_dataset": "validation_dataset_version",
        "slots": "placement.resources.gpu_count",
    }.get(violation.field, f"params.{violation.field}")
    return Violation(field, violation.description)
