"""Loss of a checkpoint on held-out rows, as training would take it.

The rows come from the runner (`verl/verification/held_out.py`) as tokens with the mask that training has. A base model
stored in bf16 is compared with checkpoints in fp32, so losses are computed in fp32; those of adapters in what training
computes in, without which the base would take twice the memory.

B rows of T tokens, K places, R conversations, P pairs.
"""
# ruff: noqa: N806  (axes stand in names)

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from services.mesh.runs.runners.local import write_atomically
from services.models import loading
from services.trainer.losses.dpo import Answers, pair_losses
from services.trainer.losses.token_logprobs import token_logprobs
from services.trainer.training.launch_plan import LaunchPlan
from services.trainer.training.tasks import DpoLoss, DpoTask

HELD_OUT_FILE = "held_out.msgpack"
# Logits of a forward pass: 512 MiB of fp32. A single row may have more.
LOGITS = 1 << 27


class Side(msgspec.Struct, frozen=True, array_like=True):
    """A conversation: its tokens, and for each a 1 where it is learnt, else 0."""

    tokens: list[int]
    mask: list[int]


# One side of a conversation; of a pair the better side, then the worse.
Row = tuple[Side, ...]


def write(folder: Path, rows: Sequence[Row]) -> None:
    """All of it or nothing. Raises OSError."""
    write_atomically(folder / HELD_OUT_FILE, msgspec.msgpack.encode(rows))


def read(folder: Path) -> list[Row]:
    """Empty where no loss is to be taken."""
    path = folder / HELD_OUT_FILE
    return msgspec.msgpack.decode(path.read_bytes(), type=list[Row]) if path.exists() else []


@dataclass(frozen=True)
class Answered:
    """Log-probability of the learnt tokens of each conversation, and how many they are."""

    logp_R: Tensor  # noqa: N815
    length_R: Tensor  # noqa: N815


class HeldOut:
    """The held-out rows of a run of `sft` or `dpo`, and what the reference answers to them."""

    def __init__(self, plan: LaunchPlan) -> None:
        self._plan = plan
        self._loss = plan.task.loss if isinstance(plan.task, DpoTask) else None
        self._reference: Answered | None = None
        self._failure: Exception | None = None

    @cached_property
    def _rows(self) -> list[Row]:
        return read(Path(self._plan.work_dir))

    def prepare(self) -> None:
        """Ask the reference, if the loss has one that has not been asked. To be called while no model is loaded."""
        if self._reference is not None or self._loss is None or not self._loss.has_reference:
            return
        self._failure = None
        try:
            if self._rows:
                self._reference = self._ask(loading.language_model(Path(self._plan.model_path)).eval())
        except Exception as error:
            # Told where the loss is asked for; the checkpoint is looked at all the same.
            self._failure = error

    def measure(self, model: Any, is_base: bool) -> dict[str, float]:
        """The metrics of a checkpoint, or of the base model, which is the reference of `dpo`. Raises what `prepare` has
        met, and what reading the rows meets."""
        if not self._rows:
            return {}
        if self._failure is not None and not is_base:
            raise self._failure
        answered = self._ask(model)
        if self._loss is None:
            return token_metrics(answered)
        if is_base:
            self._reference, self._failure = answered, None
        return pair_metrics(answered, self._reference, self._loss)

    def _ask(self, model: Any) -> Answered:
        """In the precision that all checkpoints of the run can be compared in."""
        in_bf16 = self._plan.adapter and self._plan.computes_in == "bfloat16"
        dtype = torch.bfloat16 if in_bf16 else torch.float32
        return ask(loading.cast(model, dtype), [side for row in self._rows for side in row])


@torch.inference_mode()
def ask(model: Any, sides: Sequence[Side]) -> Answered:
    """Ask a language model in eval mode, on its device."""
    logp_R, length_R = torch.zeros(2, len(sides), dtype=torch.float64)
    device = next(model.parameters()).device
    for batch in _batches([len(side.tokens) for side in sides], model.config.get_text_config().vocab_size):
        token_B_T, learnt_B_T, present_B_T = (part.to(device) for part in _padded([sides[row] for row in batch]))
        # Nothing predicts the first token. Logits are made only at the places before a learnt token.
        learnt_B_T = learnt_B_T[:, 1:]
        place_K = learnt_B_T.any(0).nonzero().squeeze(1)
        if len(place_K) == 0:
            continue
        logits = model(
            input_ids=token_B_T, attention_mask=present_B_T, use_cache=False, logits_to_keep=place_K
        ).logits  # fmt: skip
        logp_B_K = token_logprobs(logits, token_B_T[:, place_K + 1]).double() * learnt_B_T[:, place_K]
        logp_R[batch] = logp_B_K.sum(1).cpu()
        length_R[batch] = learnt_B_T.sum(1).double().cpu()
    return Answered(logp_R, length_R)


def _batches(lengths: Sequence[int], vocabulary_size: int) -> Iterator[list[int]]:
    """Rows of about the same length together, the longest first: what does not fit into memory fails at once."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    start = 0
    while start < len(order):
        size = max(1, LOGITS // (vocabulary_size * max(1, lengths[order[start]])))
        yield order[start : start + size]
        start += size


def _padded(sides: Sequence[Side]) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, mask of the learnt ones, and mask of those that are there; padded at the end."""
    width = max(len(side.tokens) for side in sides)
    rows = [(side.tokens, side.mask, [1] * len(side.tokens)) for side in sides]
    padded = [[part + [0] * (width - len(part)) for part in row] for row in rows]
    tokens, learnt, present = torch.tensor(padded).unbind(1)
    return tokens, learnt, present


def token_metrics(answered: Answered) -> dict[str, float]:
    """Mean cross entropy of the learnt tokens of all rows, each token alike, as verl's loss of a step has it."""
    count = float(answered.length_R.sum())
    values = {"validation/tokens/count": count}
    if count:
        loss = -float(answered.logp_R.sum()) / count
        # e^709 is the largest that a float holds.
        values |= {"validation/loss": loss, "validation/perplexity": math.exp(loss) if loss < 709 else math.inf}
    return values


def pair_metrics(answered: Answered, reference: Answered | None, settings: DpoLoss) -> dict[str, float]:
    """Means over pairs of the loss, of the margin of the implied rewards, and of whether it is above 0."""
    reference_R = torch.zeros_like(answered.logp_R) if reference is None else reference.logp_R
    chosen, rejected = (
        Answers(answered.logp_R[side::2], reference_R[side::2], answered.length_R[side::2]) for side in (0, 1)
    )
    losses = pair_losses(chosen, rejected, settings)
    margin_P = losses.chosen_reward_P - losses.rejected_reward_P
    return {
        "validation/pairs/count": float(len(margin_P)),
        "validation/loss": float(losses.loss_P.mean()),
        "validation/accuracy": float((margin_P > 0).double().mean()),
        "validation/margin": float(margin_P.mean()),
    }
