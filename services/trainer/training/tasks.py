"""What a run is to learn, one variant a trainer: LaunchPlan.task.

A task names what carries it out, what its rows are, and what only it needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import msgspec

from services.rewards.spec import RewardSpec

# Weights of a language model, an adapter over them, or a reward model: a sequence classifier with one score.
CheckpointKind = Literal["full", "adapter", "reward"]
# What a step must have, besides a gradient that changes weights, for anything to be learnt in it: nothing more; a
# prompt whose answers got different rewards; two answers of different reward. A gradient that comes from a KL or an
# entropy term alone teaches nothing that the rewards say.
LearnsFrom = Literal["gradient", "groups", "rewards"]
Rows = Literal["messages", "preference", "prompt"]


@dataclass(frozen=True)
class PairValidationPlan:
    """How each checkpoint of a reward model is judged: on the first `rows` pairs of the validation file; pairs that are
    longer than `max_tokens` are left out.
    """

    rows: int
    batch_size: int
    max_tokens: int


@dataclass(frozen=True)
class DpoLoss:
    """The loss of `dpo`; the formulas stand in losses/dpo.py. `gamma` is read by simpo alone."""

    kind: Literal["sigmoid", "ipo", "hinge", "simpo"]
    beta: float
    gamma: float = 0.0
    label_smoothing: float = 0.0

    @property
    def has_reference(self) -> bool:
        return self.kind != "simpo"


@dataclass(frozen=True)
class RewardModelLoss:
    """The loss of `reward_model`; the formula stands in losses/bradley_terry.py."""

    margin: float = 0.0
    centre_coefficient: float = 0.0


class SftTask(msgspec.Struct, frozen=True, tag="sft"):
    """Next-token loss on the assistant's turns."""

    # `module:function` under services.trainer.verl.trainers.
    trainer: ClassVar[str] = "sft:train"
    rows: ClassVar[Rows] = "messages"
    checkpoint_kind: ClassVar[CheckpointKind] = "full"
    # The parameter that a user calls LaunchPlan.max_tokens.
    max_tokens_param: ClassVar[str] = "max_length"
    learns_from: ClassVar[LearnsFrom] = "gradient"


class DpoTask(msgspec.Struct, frozen=True, tag="dpo"):
    """A loss on pairs of answers, one preferred."""

    trainer: ClassVar[str] = "dpo:train"
    rows: ClassVar[Rows] = "preference"
    checkpoint_kind: ClassVar[CheckpointKind] = "full"
    max_tokens_param: ClassVar[str] = "max_length"
    learns_from: ClassVar[LearnsFrom] = "gradient"

    loss: DpoLoss


class RewardModelTask(msgspec.Struct, frozen=True, tag="reward_model"):
    """A score for each answer of a pair, the preferred one higher; validated on pairs, without answering."""

    trainer: ClassVar[str] = "reward_model:train"
    rows: ClassVar[Rows] = "preference"
    checkpoint_kind: ClassVar[CheckpointKind] = "reward"
    max_tokens_param: ClassVar[str] = "max_length"
    learns_from: ClassVar[LearnsFrom] = "gradient"

    loss: RewardModelLoss
    validation: PairValidationPlan | None = None


class RlTask(msgspec.Struct, frozen=True, tag="rl"):
    """Policy gradient over answers that a reward judges; `held_out_reward` is logged beside, never trained on."""

    trainer: ClassVar[str] = "rl:train"
    rows: ClassVar[Rows] = "prompt"
    checkpoint_kind: ClassVar[CheckpointKind] = "full"
    max_tokens_param: ClassVar[str] = "max_prompt_length"

    reward: RewardSpec
    held_out_reward: RewardSpec | None = None
    learns_from: LearnsFrom = "rewards"


Task = SftTask | DpoTask | RewardModelTask | RlTask
