"""What a job's files will take on the disk, foreseen before it starts. Pure but for the look at the disk."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

from services.mesh.errors import Violation
from services.trainer.algorithms.retention import CheckpointSettings
from services.trainer.training.launch_plan import LaunchPlan

# verl trains and saves in fp32 whatever it computes in: the weights, and beside them Adam's two moments.
WEIGHT_BYTES = 4
MOMENT_BYTES = 8
# About so often a run saves that leaves it open, with so many steps between at the least.
SAVES, LEAST_STEPS = 10, 20


@dataclass(frozen=True)
class DiskForecast:
    """A lower bound, in bytes on the disk of the home: see `rlhf.trainer.v1.DiskForecast`."""

    weights_bytes: int
    training_state_bytes: int
    save_count: int
    checkpoint_count: int
    training_state_count: int
    needed_bytes: int
    free_bytes: int | None


@dataclass(frozen=True)
class Disk:
    """Where runs keep their files; `holds_artifacts` where the store of checkpoints lies on the same one."""

    folder: Path
    holds_artifacts: bool

    @classmethod
    def of(cls, jobs_folder: Path, artifacts_url: str) -> Disk:
        filesystem, root = fsspec.url_to_fs(artifacts_url)
        if "file" not in filesystem.protocol:
            return cls(jobs_folder, holds_artifacts=False)
        same = _existing(jobs_folder).stat().st_dev == _existing(Path(root)).stat().st_dev
        return cls(jobs_folder, holds_artifacts=same)

    def free_bytes(self) -> int | None:
        """What a user may still write; None where it cannot be found out."""
        try:
            return shutil.disk_usage(_existing(self.folder)).free
        except OSError:
            return None


def forecast(
    plan: LaunchPlan,
    settings: CheckpointSettings,
    parameter_count: int,
    disk: Disk | None,
    critic_count: int | None = None,
) -> DiskForecast | None:
    """None for a model of unknown size. `critic_count` are the critic's parameters where it is another model.

    A checkpoint is there before the one is let go that it replaces, its weights twice until they are in the store; an
    adapter run writes all weights while it saves.
    """
    if parameter_count == 0:
        return None
    whole = WEIGHT_BYTES * parameter_count
    moments = MOMENT_BYTES * parameter_count
    weights = 0 if plan.adapter else whole
    # Adapters have moments of their own alone, also where they are merged into what is kept.
    state = whole if any(name.endswith(".lora_rank") for name in plan.verl) else whole + moments
    if plan.verl.get("algorithm.adv_estimator") == "gae":
        # The critic's, which is trained whole.
        state += (WEIGHT_BYTES + MOMENT_BYTES) * (critic_count or parameter_count)
    every = plan.save_every_steps or plan.total_steps
    saves = -(-plan.total_steps // every)
    kept = saves if settings.keep_best is None else min(saves, settings.keep_best + settings.keep_last + 1)
    states = min(saves, settings.keep_training_states + 1)
    stored = weights * kept if disk is None or disk.holds_artifacts else 0
    return DiskForecast(
        weights_bytes=weights,
        training_state_bytes=state,
        save_count=saves,
        checkpoint_count=kept,
        training_state_count=states,
        needed_bytes=stored + whole + state * states,
        free_bytes=disk.free_bytes() if disk is not None else None,
    )


def save_every(total_steps: int) -> int:
    """Where a job leaves it open: what a crash costs is at most a tenth of the run, or 20 steps; 0 for shorter runs."""
    every = max(-(-total_steps // SAVES), LEAST_STEPS)
    return every if every < total_steps else 0


def check_room(found: DiskForecast | None) -> list[Violation]:
    """A violation where it surely does not fit."""
    if found is None or found.free_bytes is None or found.needed_bytes <= found.free_bytes:
        return []
    message = (
        f"{found.save_count} saves, of which at most {found.checkpoint_count} checkpoints of"
        f" {_gib(found.weights_bytes)} and {found.training_state_count} training states of"
        f" {_gib(found.training_state_bytes)} are there at a time, take at least {_gib(found.needed_bytes)} with what a"
        f" save needs while it lasts; the disk of the home has {_gib(found.free_bytes)} free. "
    )
    fewer = "Save less often, or keep fewer by checkpoints.keep_best and checkpoints.keep_training_states"
    remedy = fewer if found.save_count > 1 else "Free some, use lora or a smaller model"
    return [Violation("save_every_steps", message + remedy)]


def to_json(found: DiskForecast | None) -> dict[str, Any] | None:
    return None if found is None else dict(vars(found))


def _existing(path: Path) -> Path:
    """The path, or the nearest of its parents that is there."""
    return next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.2f} GiB"
