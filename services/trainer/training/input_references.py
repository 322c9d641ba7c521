"""References of models, checkpoints and jobs to what they need of the artifact store."""

from __future__ import annotations

from collections.abc import Sequence

from services.mesh.artifacts import Manifest, references
from services.mesh.db.postgres import Connection
from services.mesh.errors import FailedPrecondition, InvalidArgument
from services.trainer.entities import Checkpoint, Layer, TrainingSpec

# Users named in the refusal to delete what they use.
_SHOWN_USERS = 10
# The service whose versions jobs read.
_DATASETS = "dataset"


async def hold_inputs(connection: Connection, job: str, spec: TrainingSpec) -> None:
    """All that a training job loads, until it has ended. Raises InvalidArgument where a dataset was deleted since
    it was looked at; the lock of the references is held by then, which who deletes takes alone.
    """
    if await references.keeps_references(connection, _DATASETS):
        versions = {
            "dataset_version": (spec.dataset_version, spec.dataset_sha256),
            "validation_dataset_version": (spec.validation_dataset_version, spec.validation_dataset_sha256),
        }
        for field, (version, sha256) in versions.items():
            if version and not await references.holds(connection, version, sha256):
                raise InvalidArgument.of(f"training_job.{field}", f"{version} was deleted a moment ago; name another")
    for resource, sha256 in inputs(spec):
        await references.add(connection, job, sha256, resource)


def inputs(spec: TrainingSpec) -> list[tuple[str, str]]:
    """Names of the resources that a job reads, with the hashes of their contents, sorted, each once."""
    used = [(layer.name, layer.manifest_sha256) for layer in spec.base_layers]
    used += spec.reward_models.items()
    used.append((spec.dataset_version, spec.dataset_sha256))
    if spec.validation_dataset_version:
        used.append((spec.validation_dataset_version, spec.validation_dataset_sha256))
    if spec.resume_from:
        # Its training state, which is no blob: the name is held.
        used.append((spec.resume_from, ""))
    return sorted(set(used))


async def hold_layers(connection: Connection, holder: str, layers: tuple[Layer, ...]) -> None:
    """Weights that the holder is made from, or lies over."""
    for layer in layers:
        await references.add(connection, holder, layer.manifest_sha256, layer.name)


async def hold_checkpoint(
    connection: Connection, checkpoint: Checkpoint, manifest: Manifest, spec: TrainingSpec
) -> None:
    """Its files, and what it lies over if it is an adapter."""
    await hold_artifact(connection, checkpoint.name, manifest)
    if checkpoint.kind == "adapter":
        await hold_layers(connection, checkpoint.name, spec.base_layers)


async def hold_artifact(connection: Connection, holder: str, manifest: Manifest) -> None:
    await references.add_content(connection, holder, manifest.sha256, [file.sha256 for file in manifest.files])


def check_unused(name: str, reason: str, users: Sequence[str]) -> None:
    """Raises FailedPrecondition with the names of the users."""
    if users:
        shown = ", ".join(users[:_SHOWN_USERS]) + (", …" if len(users) > _SHOWN_USERS else "")
        message = (
            f"{name} cannot be deleted: {shown} use it\nWhat to do: wait for jobs or cancel them, delete what lies over"
            " it first, or force it: they keep the bytes that they need until they are gone"
        )
        raise FailedPrecondition(reason, message, name=name, users=shown)
