"""What a training job names, looked up: each that cannot be had is told beside the others."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any, Protocol

from services import rewards
from services.mesh.errors import Violation
from services.mesh.validation.partial import find_or_report, value_or
from services.trainer.entities import BaseModel, DatasetVersion, NewTrainingJob
from services.trainer.training.resume import States

CRITIC_MODEL = "params.critic.model"


class ReferenceLookup(States, Protocol):
    """Where the facts come from. Each raises InvalidArgument or NotFound with a text for the caller."""

    async def dataset_version(self, name: str) -> DatasetVersion: ...

    async def base_model(self, reference: str) -> BaseModel: ...

    async def reward_model(self, reference: str) -> BaseModel: ...

    async def files(self, model: BaseModel, paths: tuple[str, ...]) -> dict[str, bytes]:
        """Those of `paths` that the model has."""
        ...


async def job_reward_models(parsed: Any, look_up: ReferenceLookup, found: list[Violation]) -> dict[str, str]:
    named = {field: value_or(partial(_named_reward, parsed, field), None) for field in ("reward", "held_out_reward")}
    settings = {f"params.{field}.": one for field, one in named.items() if one is not None}
    return await reward_models(settings, look_up, found)


def _named_reward(parsed: Any, field: str) -> tuple[str, Mapping[str, Any]] | None:
    reward = getattr(parsed, field, None)
    return None if reward is None else (reward.name, reward.params)


async def reward_models(
    settings: Mapping[str, tuple[str, Mapping[str, Any]]], look_up: ReferenceLookup, found: list[Violation]
) -> dict[str, str]:
    """Manifests of the models that rewards load, by reference. `settings` are a reward's name and params by the prefix
    of their fields; what is wrong with the params is told elsewhere."""
    references = {
        f"{prefix}params.{path}": reference
        for prefix, (name, given) in settings.items()
        for path, reference in rewards.models(name, given).items()
    }
    models = await asyncio.gather(
        *(find_or_report(look_up.reward_model(reference), field, found) for field, reference in references.items())
    )
    pairs = zip(references.values(), models, strict=True)
    return {reference: model.manifest_sha256 for reference, model in pairs if model is not None}


async def critic_model(parsed: Any, look_up: ReferenceLookup, found: list[Violation]) -> BaseModel | None:
    """The reward model that a critic starts from, where one is named."""
    reference = value_or(partial(critic_reference, parsed), None)
    return await find_or_report(look_up.reward_model(reference), CRITIC_MODEL, found) if reference is not None else None


def critic_reference(parsed: Any) -> str | None:
    return getattr(getattr(parsed, "critic", None), "model", None)


async def validation_version(
    new: NewTrainingJob, look_up: ReferenceLookup, found: list[Violation]
) -> DatasetVersion | None:
    if not new.validation_dataset_version:
        return None
    name = new.validation_dataset_version
    return await find_or_report(look_up.dataset_version(name), "validation_dataset_version", found)
