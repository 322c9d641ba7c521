"""verl's SFT trainer on pairs: a step takes both answers of each of its pairs, one row after the other."""
# ruff: noqa: N803  (axes stand in names)

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from services.trainer.verl.metrics import WEIGHTS_CHANGED
from services.trainer.verl.trainers.datasets import Warn, ignore_warning
from services.trainer.verl.trainers.pair_rows import PairRows, collate
from services.trainer.verl.trainers.sft import SftTrainer
from services.trainer.verl.verification.held_out import pair, write_held_out

# How many pairs a loss function has counted, among the sums it gives.
PAIRS = "pairs"


class PairTrainer(SftTrainer):
    def _rows(self, path: Path, report: Callable[..., None], warn: Warn = ignore_warning) -> PairRows:
        plan, tokenizer = self._context.plan, self.model_config.tokenizer
        return PairRows(path, tokenizer, plan.max_tokens, report, warn)

    def _collator(self) -> Any:
        return collate

    def write_held_out(self) -> None:
        write_held_out(self._context.plan, self._context.spool, "preference", self._rows, pair)

    def metrics(self, raw: Mapping[str, Any]) -> Mapping[str, Any]:
        """The sums of every micro batch on every slot as means over the step's pairs."""
        sums = {name: value for name, value in raw.items() if isinstance(value, list) and name != WEIGHTS_CHANGED}
        totals = {name: sum(_numbers(value)) for name, value in sums.items()}
        pairs = totals.pop(PAIRS)
        return {**raw, **{name: total / pairs for name, total in totals.items()}}


def pair_sums(loss_P: Tensor, chosen_reward_P: Tensor, rejected_reward_P: Tensor) -> dict[str, float]:
    """What a loss function reports of P pairs, detached: sums, which `PairTrainer.metrics` divides."""
    sums = {
        "rewards/chosen": chosen_reward_P,
        "rewards/rejected": rejected_reward_P,
        "rewards/margin": chosen_reward_P - rejected_reward_P,
        "rewards/accuracy": (chosen_reward_P > rejected_reward_P).float(),
    }
    return {PAIRS: float(len(loss_P)), **{name: float(values.detach().sum()) for name, values in sums.items()}}


def step_mean(loss_P: Tensor, data: Any) -> Tensor:
    """A micro batch's part of the mean over the step's pairs, times the slots, whose gradients verl averages."""
    return loss_P.sum() / data["global_batch_size"] * data["dp_size"]


def _numbers(value: Any) -> Iterable[float]:
    """verl's metrics are lists over slots of lists over micro batches."""
    if isinstance(value, list):
        for part in value:
            yield from _numbers(part)
    else:
        yield float(value)
