"""An error of the mesh, as a person reads it: what is wrong, and which flag changes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from services.cli import output
from services.mesh.errors import InvalidArgument, PlatformError, Violation

if TYPE_CHECKING:
    from rich.console import RenderableType

# Fields of the contract and the flag that sets each.
_FLAGS = {
    "algorithm": "ALGORITHM",
    "model": "--model",
    "base_model": "--model",
    "dataset": "--dataset",
    "dataset_version": "--dataset",
    "validation_dataset": "--validation",
    "validation_dataset_version": "--validation",
    "priority": "--priority",
    "slots": "--gpus",
    "placement.resources.gpu_count": "--gpus",
    "name": "--name",
    "training_job_id": "--name",
    "model_id": "NAME",
    "dataset_id": "--name",
    "format": "--format",
    "source": "--source",
    "source.hub": "--source",
    "source.path": "--source",
    "source.init.config": "--init",
    "source.init.characters.alphabet": "--characters",
    "source.init.tokenizer_model": "--tokenizer",
    "source.init.seed": "--seed",
    "file_name": "FILE",
    "field_mapping": "--map",
    "max_invalid_row_count": "--skip-invalid",
    "max_invalid_row_share": "--skip-invalid",
    "split.name": "--split",
    "split.share": "--split",
    "reward_id": "REWARD",
    "params": "--set",
    "inputs.base_manifest_sha256": "model",
    "inputs.dataset_sha256": "dataset",
    "inputs.validation_dataset_sha256": "validation dataset",
}
_MESSAGES = ("training_job.", "model.", "dataset.", "upload.")


def flag(field: str) -> str:
    """The flag that sets a field: `training_job.params.reward.name` → `--set reward.name`."""
    path = next((field.removeprefix(prefix) for prefix in _MESSAGES if field.startswith(prefix)), field)
    if path == "labels" or path.startswith(("labels.", "labels[")):
        return "--label"
    if path.startswith("inputs.reward_models."):
        return f"reward model {path.removeprefix('inputs.reward_models.')}"
    if path.startswith("params."):
        return f"--set {path.removeprefix('params.')}"
    if path.startswith("field_mapping."):
        return f"--map {path.removeprefix('field_mapping.')}"
    return _FLAGS.get(path, path)


def show(error: PlatformError) -> None:
    """On stderr: the message; for a wrong argument every violation on a line of its own, by its flag."""
    violations = list(error.violations) if isinstance(error, InvalidArgument) else []
    if len(violations) > 1:
        output.say(_marked(f"{len(violations)} things to change"))
        output.say(_table(violations))
    elif violations:
        output.say(_marked(f"{flag(violations[0].field)}: {violations[0].description}"))
    else:
        output.say(_marked(error.message))


def _table(violations: Sequence[Violation]) -> RenderableType:
    from rich.padding import Padding
    from rich.table import Table

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bold", overflow="fold")
    table.add_column(overflow="fold")
    for violation in violations:
        table.add_row(flag(violation.field), violation.description)
    return Padding(table, (0, 0, 0, 2), expand=False)


def _marked(text: str) -> RenderableType:
    from rich.text import Text

    return Text.assemble(("error: ", "bold red"), text)
