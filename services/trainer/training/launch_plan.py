"""What is to be trained, spelt out: the document that an algorithm makes and a runner carries out.

A LaunchPlan is JSON beside the run (`plan.json`). It names only paths, addresses and verl settings, so the process that
makes it needs neither torch nor verl, and the process that carries it out needs neither the database nor the network.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from services.mesh.runs.files import PLAN_FILE
from services.models.shape import ModelShape
from services.rewards.spec import DEFAULT_REWARD_SITE, RewardSite, RewardSpec
from services.trainer.training.tasks import CheckpointKind, PairValidationPlan, RewardModelTask, RlTask, Task

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class ValidationPlan:
    """How each checkpoint is measured: the first `rows` of the validation file are answered and scored with `reward`
    (None: `weights/questions.reward_for` chooses), and their loss is taken where they are what the algorithm trains on.
    """

    rows: int
    max_new_tokens: int
    temperature: float
    batch_size: int
    reward: RewardSpec | None


@dataclass(frozen=True)
class ResumePoint:
    """A training state (`…/training_state`) written after `step`."""

    step: int
    path: str


@dataclass(frozen=True)
class LaunchPlan:
    """One attempt of one training job.

    `slots` are Ray GPUs (logical ones on a CPU machine). `verl` holds overrides of verl's configuration by dotted name.
    `save_every_steps` 0 saves only at the end. `max_tokens` bounds a prompt for `rl`, else a whole row (of a
    pair each side): longer rows are left out and reported. `adapter` says that checkpoints are adapters. `work_dir` is
    the attempt's folder.
    """

    job: str
    job_uid: str
    attempt: int
    algorithm: str
    device: Device
    slots: int
    ray_address: str
    ray_namespace: str
    model_path: str
    train_path: str
    validation_path: str | None
    validation: ValidationPlan | None
    task: Task
    verl: dict[str, Any]
    adapter: bool
    max_tokens: int
    total_steps: int
    save_every_steps: int
    resume_from: ResumePoint | None
    seed: int
    work_dir: str
    # W3C trace context that the run belongs to.
    traceparent: str = ""
    reward_site: RewardSite = DEFAULT_REWARD_SITE
    # What the base model is called elsewhere, for who gets an adapter over it: never a path.
    base_name: str = ""

    @property
    def checkpoint_kind(self) -> CheckpointKind:
        return "adapter" if self.adapter else self.task.checkpoint_kind

    @property
    def computes_in(self) -> Literal["auto", "float32", "bfloat16"]:
        """The precision of training, as torch calls it; `auto` where the plan leaves it open."""
        for name in ("engine.mixed_precision", "actor_rollout_ref.actor.fsdp_config.mixed_precision"):
            if name in self.verl:
                return "float32" if self.verl[name]["param_dtype"] == "fp32" else "bfloat16"
        return "auto"

    @property
    def pair_validation(self) -> PairValidationPlan | None:
        """How a reward model is judged; None for what answers."""
        return self.task.validation if isinstance(self.task, RewardModelTask) else None

    @property
    def span_attributes(self) -> dict[str, str | int | float | bool]:
        """What the spans of the run tell of it."""
        return {
            "rlhf.job.name": self.job,
            "rlhf.job.attempt": self.attempt,
            "rlhf.job.algorithm": self.algorithm,
        }

    @property
    def start_step(self) -> int:
        """How many steps have been taken when the run begins."""
        return self.resume_from.step if self.resume_from else 0


@dataclass(frozen=True)
class PlanInputs:
    """What an algorithm's `plan` needs besides its parameters: where things are and what the job was given."""

    job: str
    job_uid: str
    attempt: int
    device: Device
    slots: int
    ray_address: str
    ray_namespace: str
    model_path: str
    train_path: str
    train_rows: int
    validation_path: str | None
    validation_rows: int
    resume_from: ResumePoint | None
    work_dir: str
    traceparent: str = ""
    reward_site: RewardSite = DEFAULT_REWARD_SITE
    base_name: str = ""

    def common(self) -> dict[str, Any]:
        """The fields that a LaunchPlan takes over unchanged."""
        return {key: getattr(self, key) for key in self.__dataclass_fields__ if not key.endswith("_rows")}


@dataclass(frozen=True)
class CriticFacts:
    """What is known of a critic's model, as of the base model in JobFacts."""

    context_length: int | None
    model_parameters: int | None


@dataclass(frozen=True)
class JobFacts:
    """What is known about a job before anything is started; None where nobody knows.

    `context_length` in tokens, `model_parameters` a count, `memory_bytes` what one slot may use,
    `median_characters` of all turns of a training row. `critic` is the reward model that a critic starts from, where
    the job names one.
    """

    device: Device
    slots: int
    train_format: str
    train_rows: int
    validation_format: str | None = None
    validation_rows: int = 0
    context_length: int | None = None
    model_parameters: int | None = None
    memory_bytes: int | None = None
    reward_site: RewardSite = DEFAULT_REWARD_SITE
    critic: CriticFacts | None = None
    shape: ModelShape | None = None
    median_characters: int | None = None


def rl_task(plan: LaunchPlan) -> RlTask:
    """The task of a plan for the trainer `rl`."""
    assert isinstance(plan.task, RlTask)
    return plan.task


def encode(plan: LaunchPlan) -> bytes:
    return msgspec.json.format(msgspec.json.encode(plan), indent=2)


def decode(data: bytes) -> LaunchPlan:
    """Raises msgspec.ValidationError when a field is missing or has the wrong type."""
    document = msgspec.json.decode(data)
    if isinstance(document, dict) and "trainer" in document:
        document = _with_task(document)
    return msgspec.convert(document, LaunchPlan)


def _with_task(document: dict[str, Any]) -> dict[str, Any]:
    """A plan of earlier code, which had the fields of all tasks side by side; its run may still go on."""
    own = {
        "sft": {},
        "dpo": {"loss": document.get("dpo")},
        "reward_model": {"loss": document.get("reward_model"), "validation": document.get("pair_validation")},
        "rl": {name: document.get(name) for name in ("reward", "held_out_reward", "learns_from")},
    }
    task = document["trainer"]
    fields = {name: value for name, value in own.get(task, {}).items() if value is not None}
    return {**document, "task": {"type": task, **fields}}


def read(folder: Path) -> LaunchPlan:
    return decode((folder / PLAN_FILE).read_bytes())
