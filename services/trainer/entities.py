"""The trainer's nouns, as frozen dataclasses. They know neither wire nor store."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from services.mesh.jobs.warnings import JobWarning

LATEST = "latest"


class ModelState(StrEnum):
    IMPORTING = "IMPORTING"
    READY = "READY"
    FAILED = "FAILED"


@dataclass(frozen=True)
class Model:
    """One row. `source` is {"hub"}, {"path"}, {"checkpoint"} or {"init": {"config", "characters" | "tokenizer_model",
    "seed"}}; `parents` are names, of a model that was made from a checkpoint.
    """

    uid: UUID
    name: str
    parent: str
    display_name: str
    source: dict[str, Any]
    labels: dict[str, str]
    state: ModelState
    architecture: str
    parameter_count: int
    context_length: int
    vocabulary_size: int
    manifest_sha256: str
    size_bytes: int
    error: dict[str, Any] | None
    create_time: datetime
    parents: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        object.__setattr__(self, "state", ModelState(self.state))


@dataclass(frozen=True)
class NewModel:
    """What a caller asks for."""

    parent: str
    id: str
    display_name: str
    source: dict[str, Any]
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class NewTrainingJob:
    """What a caller asks for. `gpu_count` 0 means one slot."""

    parent: str
    id: str
    algorithm: str
    base_model: str
    dataset_version: str
    validation_dataset_version: str
    params: dict[str, Any]
    target: str
    gpu_count: int
    priority: int
    labels: dict[str, str] = field(default_factory=dict)
    # Hashes that what it reads must still have, by the names of JobInputs; empty where none is given.
    inputs: dict[str, str] = field(default_factory=dict)
    # And those of the reward models that it loads, by the reference of each.
    reward_model_inputs: dict[str, str] = field(default_factory=dict)
    # The checkpoint of another job that training goes on from; empty to begin anew.
    resume_from: str = ""


@dataclass(frozen=True)
class DatasetVersion:
    """What the trainer has to know of a version that the dataset service holds."""

    name: str
    format: str
    row_count: int
    size_bytes: int
    # Rows with a verifiable answer; None for a format that has none.
    answered_row_count: int | None
    # Of format and rows.
    sha256: str = ""
    # Of all turns of a row; None where the version does not say.
    median_characters: int | None = None


@dataclass(frozen=True)
class Layer:
    """Full weights, or an adapter over the layer before it: a model reference and its content."""

    name: str
    manifest_sha256: str


@dataclass(frozen=True)
class BaseModel:
    """Weights that a job starts from: a model or a checkpoint. `context_length` in tokens, 0 where unknown.

    `under` is what an adapter lies over, the full weights first; empty for full weights.
    """

    name: str
    manifest_sha256: str
    parameter_count: int
    context_length: int
    under: tuple[Layer, ...] = ()
    # Whether it is a reward model.
    scores: bool = False

    @property
    def layers(self) -> tuple[Layer, ...]:
        """All that makes the weights, from the full ones up."""
        return (*self.under, Layer(self.name, self.manifest_sha256))


@dataclass(frozen=True)
class TrainingSpec:
    """A checked job: the `spec` of its row. Defaults are filled in, `latest` is resolved, facts are frozen."""

    algorithm: str
    base_model: str
    base_manifest_sha256: str
    parameter_count: int
    context_length: int
    dataset_version: str
    train_rows: int
    validation_dataset_version: str
    validation_rows: int
    params: dict[str, Any]
    target: str
    slots: int
    labels: dict[str, str]
    dataset_sha256: str = ""
    validation_dataset_sha256: str = ""
    # Manifests of the reward models that it loads, to judge or as its critic, by the reference of each.
    reward_models: dict[str, str] = field(default_factory=dict)
    # Fields of disk.DiskForecast; None where nothing can be foreseen.
    disk_forecast: dict[str, Any] | None = None
    # What the base model lies over if it is an adapter, the full weights first.
    base_under: tuple[Layer, ...] = ()
    # What was found when it was checked and does not forbid it: of attempt 0.
    warnings: tuple[JobWarning, ...] = ()
    # The checkpoint of another job that it goes on from; empty where it begins anew.
    resume_from: str = ""
    # Fields of data_forecast.DataForecast; None where nobody has looked.
    data_forecast: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        # Of a stored job they are JSON objects.
        layers = (one if isinstance(one, Layer) else Layer(**one) for one in self.base_under)
        object.__setattr__(self, "base_under", tuple(layers))
        warnings = (one if isinstance(one, JobWarning) else JobWarning(**one) for one in self.warnings)
        object.__setattr__(self, "warnings", tuple(warnings))

    @property
    def base_layers(self) -> tuple[Layer, ...]:
        """All that makes the base model's weights, from the full ones up."""
        return (*self.base_under, Layer(self.base_model, self.base_manifest_sha256))


class CheckpointState(StrEnum):
    VERIFYING = "VERIFYING"
    READY = "READY"
    CORRUPT = "CORRUPT"
    PRUNED = "PRUNED"


class TrainingStateState(StrEnum):
    KEPT = "KEPT"
    PRUNED = "PRUNED"
    CORRUPT = "CORRUPT"


@dataclass(frozen=True)
class Checkpoint:
    """One row. `kind` is `full`, `adapter` or `reward`; the training state is private, without a path unless KEPT.

    `weights_path` is the run's own copy until the store has it and it is deleted. `provenance` has the fields of
    rlhf.type.v1.Provenance. `files_kept`: it is CORRUPT, and its files are in the store as they were found.
    """

    job_uid: UUID
    step: int
    name: str
    attempt: int
    kind: str
    state: CheckpointState
    base_model: str
    manifest_sha256: str
    size_bytes: int
    metrics: dict[str, float]
    parents: list[str]
    training_state_path: str
    training_state_sha256: str
    create_time: datetime
    state_reason: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)
    training_state: TrainingStateState = TrainingStateState.KEPT
    weights_path: str = ""
    files_kept: bool = False

    @property
    def has_files(self) -> bool:
        """Whether its files can be had: of one that is READY, or that the check could not confirm."""
        return self.state is CheckpointState.READY or self.files_kept

    def __post_init__(self) -> None:
        object.__setattr__(self, "state", CheckpointState(self.state))
        object.__setattr__(self, "training_state", TrainingStateState(self.training_state))


@dataclass(frozen=True)
class RewardVerdict:
    """What a reward makes of one sample; `error` is why it could not be judged."""

    score: float
    parts: dict[str, float]
    error: dict[str, Any] | None = None


@dataclass(frozen=True)
class RewardTrial:
    """One verdict a sample, in order. `elapsed_seconds` is the time that scoring took."""

    verdicts: list[RewardVerdict]
    elapsed_seconds: float
