"""Everything that can be wrong with a training job, found at once and before anything is started."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from services import rewards
from services.mesh import names
from services.mesh.errors import InvalidArgument, Violation
from services.mesh.rpc.labels import check_labels
from services.mesh.runs.runners import runners
from services.mesh.validation import params
from services.mesh.validation.partial import collect_violations, find_or_report, partial_instance, value_or
from services.models import tokenizer_compat
from services.models.shape import FILE, ModelShape, shape_of
from services.rewards.spec import DEFAULT_REWARD_SITE, RewardSite
from services.trainer.algorithms import Algorithm, algorithms
from services.trainer.algorithms.retention import check_retention
from services.trainer.algorithms.validation_series import settle
from services.trainer.entities import BaseModel, DatasetVersion, NewTrainingJob, TrainingSpec
from services.trainer.training import request_limits
from services.trainer.training.disk_estimate import Disk, DiskForecast, check_room, forecast, save_every, to_json
from services.trainer.training.forecast_request import Forecast, Forecaster, ForecastRequest, no_forecast
from services.trainer.training.job_references import (
    CRITIC_MODEL,
    ReferenceLookup,
    critic_model,
    critic_reference,
    job_reward_models,
    validation_version,
)
from services.trainer.training.launch_plan import CriticFacts, JobFacts, LaunchPlan, PlanInputs
from services.trainer.training.resume import check_left, check_resume

MAX_PRIORITY = 100


@dataclass(frozen=True)
class Capacity:
    """What the place where jobs run has to offer."""

    device: str
    slots: int
    rewards: RewardSite = DEFAULT_REWARD_SITE
    # None where nothing is known of it.
    disk: Disk | None = None
    # Of one slot; None where nobody has said.
    memory_bytes: int | None = None


@request_limits.of_job
async def check(
    new: NewTrainingJob, site: Capacity, look_up: ReferenceLookup, foresee: Forecaster = no_forecast
) -> TrainingSpec:
    """The job with everything filled in. Raises InvalidArgument with every violation."""
    form = _check_form(new, site)
    algorithm, parsed, found = _read(new)
    base, train, validation, models, critic = await asyncio.gather(
        find_or_report(look_up.base_model(new.base_model), "base_model", found),
        find_or_report(look_up.dataset_version(new.dataset_version), "dataset_version", found),
        validation_version(new, look_up, found),
        job_reward_models(parsed, look_up, found),
        critic_model(parsed, look_up, found),
    )
    if critic is not None:
        models[critic.name] = critic.manifest_sha256
        found += await _check_vocabulary(base, critic, look_up)
    found += _check_inputs(new, base, train, validation) + _check_reward_inputs(new, models)
    parsed = _fitted(parsed, base, critic)
    found += await check_resume(new, parsed, base, train, look_up)
    foreseen, data = None, Forecast()
    if algorithm is not None:
        facts = _facts(new, parsed, site, base, train, validation, critic, await _shape(base, look_up))
        found += _check_together(new, algorithm, parsed, facts, train)
        # Of parameters that are right: others have no plan.
        parsed = parsed if found else settle(parsed, facts)
        if not found and (plan := value_or(partial(_plan, algorithm, parsed, facts), None)):
            parsed, plan = _saving(algorithm, parsed, plan, facts, site.disk)
            foreseen = _forecast(plan, parsed, facts, site.disk)
            found += [_placed(v) for v in check_room(foreseen)] + await check_left(new, plan, look_up)
            if base is not None and train is not None and not (found or form):
                data = await foresee(ForecastRequest(plan, parsed, algorithm.needs_reward, base, train, validation))
                found += data.violations
    if wrong := form + found:
        raise InvalidArgument(v if v.field in ("parent", "training_job_id") else v.under("training_job") for v in wrong)
    assert base is not None and train is not None
    spec = _spec(new, params.to_json(parsed), base, train, validation, foreseen)
    return replace(spec, reward_models=models, data_forecast=data.forecast, warnings=tuple(data.warnings))


def _fitted(parsed: Any, base: BaseModel | None, critic: BaseModel | None) -> Any:
    """The parameters with their lengths filled in, as far as all of them are right: no longer than any model has."""
    contexts = [model.context_length for model in (base, critic) if model is not None and model.context_length]
    return value_or(lambda: parsed.fitted(min(contexts, default=None)), parsed) if parsed is not None else None


def _spec(
    new: NewTrainingJob,
    filled: dict[str, Any],
    base: BaseModel,
    train: DatasetVersion,
    validation: DatasetVersion | None,
    foreseen: DiskForecast | None,
) -> TrainingSpec:
    """`filled` are the parameters with their defaults."""
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
        params=filled,
        target=new.target or "local",
        slots=new.gpu_count or 1,
        labels=new.labels,
        dataset_sha256=train.sha256,
        validation_dataset_sha256=validation.sha256 if validation else "",
        disk_forecast=to_json(foreseen),
        base_under=base.under,
        resume_from=new.resume_from,
    )


def _plan(algorithm: type[Algorithm], parsed: Any, facts: JobFacts) -> LaunchPlan:
    """The plan that would be carried out; its addresses and paths are of no matter here."""
    nowhere = dict.fromkeys(
        ("job", "job_uid", "ray_address", "ray_namespace", "model_path", "train_path", "work_dir"), ""
    )
    inputs = PlanInputs(
        **nowhere,
        attempt=1,
        device=facts.device,
        slots=facts.slots,
        train_rows=facts.train_rows,
        validation_path="" if facts.validation_rows else None,
        validation_rows=facts.validation_rows,
        resume_from=None,
        reward_site=facts.reward_site,
    )
    return algorithm.plan(parsed, inputs)


def _saving(
    algorithm: type[Algorithm], parsed: Any, plan: LaunchPlan, facts: JobFacts, disk: Disk | None
) -> tuple[Any, LaunchPlan]:
    """How often to save is settled where it was left open: at the end only where the disk has no room for more."""
    if parsed.save_every_steps is not None:
        return parsed, plan
    often = replace(parsed, save_every_steps=save_every(plan.total_steps))
    fits = not check_room(_forecast(_plan(algorithm, often, facts), often, facts, disk))
    settled = often if fits else replace(parsed, save_every_steps=0)
    return settled, _plan(algorithm, settled, facts)


def _forecast(plan: LaunchPlan, parsed: Any, facts: JobFacts, disk: Disk | None) -> DiskForecast | None:
    critic_count = facts.critic.model_parameters if facts.critic is not None else None
    return forecast(plan, parsed.checkpoints, facts.model_parameters or 0, disk, critic_count)


def _check_inputs(
    new: NewTrainingJob, base: BaseModel | None, train: DatasetVersion | None, validation: DatasetVersion | None
) -> list[Violation]:
    """What is read must be what the caller says it is."""
    there = {
        "base_manifest_sha256": base.manifest_sha256 if base else None,
        "dataset_sha256": train.sha256 if train else None,
        "validation_dataset_sha256": validation.sha256 if validation else None,
    }
    return [
        Violation(f"inputs.{name}", f"it is {there[name]} now: what had this name then is gone (got {wanted[:64]!r})")
        for name, wanted in new.inputs.items()
        if there[name] is not None and there[name] != wanted
    ]


def _check_reward_inputs(new: NewTrainingJob, models: Mapping[str, str]) -> list[Violation]:
    """The same of the reward models; one that cannot be had is told where the params name it."""
    return [
        Violation(
            f"inputs.reward_models.{name}",
            f"it is {models[name]} now: what had this name then is gone (got {wanted[:64]!r})",
        )
        for name, wanted in new.reward_model_inputs.items()
        if name in models and models[name] != wanted
    ]


def _check_together(
    new: NewTrainingJob, algorithm: type[Algorithm], parsed: Any, facts: JobFacts, train: DatasetVersion | None
) -> list[Violation]:
    """What is wrong between parameters and facts, as far as both are known."""
    between = collect_violations(
        lambda: algorithm.check(parsed, facts),
        lambda: check_retention(parsed.checkpoints, bool(new.validation_dataset_version)),
    )
    return [_placed(v) for v in between] + collect_violations(lambda: _check_answers(algorithm, parsed, train))


def _facts(
    new: NewTrainingJob,
    parsed: Any,
    site: Capacity,
    base: BaseModel | None,
    train: DatasetVersion | None,
    validation: DatasetVersion | None,
    critic: BaseModel | None,
    shape: ModelShape | None,
) -> JobFacts:
    """Without those of what was not found, and of what is wrong."""
    facts: dict[str, Any] = {
        "device": "cuda" if site.device == "cuda" else "cpu",
        "memory_bytes": site.memory_bytes,
        "reward_site": site.rewards,
    }
    if 0 <= new.gpu_count <= site.slots:
        facts["slots"] = new.gpu_count or 1
    if train is not None:
        facts |= {"train_format": train.format, "train_rows": train.row_count}
        facts["median_characters"] = train.median_characters
    if validation is not None:
        facts |= {"validation_format": validation.format, "validation_rows": validation.row_count}
    elif not new.validation_dataset_version:
        facts |= {"validation_format": None, "validation_rows": 0}
    if base is not None:
        facts |= {"context_length": base.context_length or None, "model_parameters": base.parameter_count or None}
        facts["shape"] = shape
    if critic is not None:
        facts["critic"] = CriticFacts(critic.context_length or None, critic.parameter_count or None)
    elif value_or(partial(critic_reference, parsed), "") is None:
        facts["critic"] = None
    return partial_instance(JobFacts, facts)


async def _shape(base: BaseModel | None, look_up: ReferenceLookup) -> ModelShape | None:
    return None if base is None else shape_of(await look_up.files(base, (FILE,)))


def _check_form(new: NewTrainingJob, site: Capacity) -> list[Violation]:
    found = names.check_new_id(new.id, "training_job_id") + check_labels(new.labels, "labels")
    if names.match(names.PROJECT, new.parent) is None:
        found.append(Violation("parent", f"must be of the form {names.PROJECT}"))
    if abs(new.priority) > MAX_PRIORITY:
        found.append(Violation("priority", f"must be from -{MAX_PRIORITY} to {MAX_PRIORITY} (got {new.priority})"))
    if new.target not in ("", *runners.names()):
        known = ", ".join(runners.names())
        found.append(Violation("placement.target", f"unknown target {new.target!r}; one of {known}"))
    if not 0 <= new.gpu_count <= site.slots:
        found.append(Violation("placement.resources.gpu_count", f"must be from 1 to {site.slots}, what there is"))
    return found


def _read(new: NewTrainingJob) -> tuple[type[Algorithm] | None, Any, list[Violation]]:
    try:
        algorithm = algorithms.get(new.algorithm)
    except InvalidArgument as error:
        return None, None, list(error.violations)
    return algorithm, *params.read(algorithm.Params, new.params)


async def _check_vocabulary(base: BaseModel | None, critic: BaseModel, look_up: ReferenceLookup) -> list[Violation]:
    """A critic reads the policy's tokens, so each has to mean the same to it."""
    if base is None:
        return []
    files = [await look_up.files(model, tokenizer_compat.FILES) for model in (base, critic)]
    wrong = await asyncio.to_thread(tokenizer_compat.differs, *files)
    if not wrong:
        return []
    message = f"has another vocabulary than {base.name} ({wrong}); name one that was trained from a model of its family"
    return [Violation(CRITIC_MODEL, message)]


def _check_answers(algorithm: type[Algorithm], parsed: Any, train: DatasetVersion | None) -> list[Violation]:
    """A reward that compares with an answer gives 0 to a row without one, and the model learns from it."""
    if not algorithm.needs_reward or train is None or train.answered_row_count is None:
        return []
    missing = train.row_count - train.answered_row_count
    if not missing or not rewards.needs_answer(parsed.reward.name, parsed.reward.params):
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
