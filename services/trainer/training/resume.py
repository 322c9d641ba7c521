"""A job that goes on from where another ended: what both must have in common."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol

from services.mesh.errors import Violation
from services.mesh.validation import params
from services.mesh.validation.partial import find_or_report, value_or
from services.trainer.entities import BaseModel, Checkpoint, DatasetVersion, NewTrainingJob, TrainingSpec
from services.trainer.training.launch_plan import LaunchPlan

# Of what training was so far they change nothing.
OWN_PARAMS = {"steps", "epochs", "save_every_steps", "checkpoints", "validation", "held_out_reward"}
_SHOWN_CHARACTERS = 60


class States(Protocol):
    async def training_state(self, name: str) -> tuple[Checkpoint, TrainingSpec]:
        """A checkpoint that training can go on from, and what its job was. Raises InvalidArgument, NotFound."""
        ...


async def check_resume(
    new: NewTrainingJob, parsed: Any, base: BaseModel | None, train: DatasetVersion | None, states: States
) -> list[Violation]:
    """Everything in which the job is another than the one it is to go on from."""
    found: list[Violation] = []
    if not new.resume_from:
        return found
    point = await find_or_report(states.training_state(new.resume_from), "resume_from", found)
    if point is None:
        return found
    checkpoint, spec = point
    job = new.resume_from.partition("/checkpoints/")[0]
    pairs = {
        "algorithm": (new.algorithm, spec.algorithm),
        "base_model": (base.manifest_sha256 if base else None, spec.base_manifest_sha256),
        "dataset_version": (train.sha256 if train else None, spec.dataset_sha256),
        "placement.resources.gpu_count": (new.gpu_count or 1, spec.slots),
    }
    shown = {"base_model": spec.base_model, "dataset_version": spec.dataset_version}
    for field, (given, wanted) in pairs.items():
        if given is not None and given != wanted:
            found.append(Violation(field, f"must be {shown.get(field, wanted)} as it was in {job}, to go on from it"))
    filled = value_or(lambda: params.to_json(parsed), None) if new.algorithm == spec.algorithm else None
    return found + _check_params(filled or {}, spec.params, job, checkpoint.step)


async def check_left(new: NewTrainingJob, plan: LaunchPlan, states: States) -> list[Violation]:
    """A violation where the job would end with steps that are taken already. Its other checks have found nothing."""
    if not new.resume_from:
        return []
    checkpoint, _ = await states.training_state(new.resume_from)
    if plan.total_steps > checkpoint.step:
        return []
    name = "epochs" if new.params.get("steps") is None else "steps"
    message = (
        f"comes to {plan.total_steps} steps, and {checkpoint.step} are taken already: nothing is left to train; raise"
        f" it, or set steps to more than {checkpoint.step}"
    )
    return [Violation(f"params.{name}", message)]


def _check_params(given: Mapping[str, Any], wanted: Mapping[str, Any], job: str, step: int) -> list[Violation]:
    # A parameter that did not exist when the job was made has no value to compare with.
    names_ = sorted((given.keys() & wanted.keys()) - OWN_PARAMS)
    found = [
        Violation(f"params.{name}", f"must be {_text(wanted[name])} as in {job} (got {_text(given[name])})")
        for name in names_
        if given[name] != wanted[name]
    ]
    steps = given.get("steps")
    if steps is not None and steps <= step:
        found.append(Violation("params.steps", f"must be more than the {step} that are taken already (got {steps})"))
    return found


def _text(value: Any) -> str:
    return json.dumps(value)[:_SHOWN_CHARACTERS]
