"""DPO on verl's SFT trainer: its loop, workers, checkpoints and resume; the loss and the reference are ours."""
# ruff: noqa: N806  (axes stand in names)

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tensordict.tensorclass import NonTensorData
from torch import Tensor
from torch.utils.data import DistributedSampler
from verl.utils import tensordict_utils as tu

from services.mesh.runs.process import StopRequestedError
from services.mesh.runs.spool import Phase
from services.trainer.losses.dpo import Answers, pair_losses, sum_answers
from services.trainer.training.tasks import DpoLoss, DpoTask
from services.trainer.verl.checkpoints import resume_folder
from services.trainer.verl.trainers import sft
from services.trainer.verl.trainers.pair_rows import collate
from services.trainer.verl.trainers.pairs import PairTrainer, pair_sums, step_mean

# Beside verl's own files of a training state.
REFERENCES = "references.safetensors"


def dpo_loss(
    model_output: dict[str, Any], data: Any, dp_group: Any = None, *, settings: DpoLoss
) -> tuple[Tensor, dict[str, float]]:
    """verl's signature of a loss: rows are chosen and rejected in turn. Runs in the training workers."""
    logps, masks = model_output["log_probs"], data["loss_mask"]
    logp_R, length_R = sum_answers(logps.values().float(), masks.values(), masks.offsets())
    reference_R = data["reference_logp"].to(logp_R.device)
    chosen, rejected = (Answers(logp_R[side::2], reference_R[side::2], length_R[side::2]) for side in (0, 1))
    losses = pair_losses(chosen, rejected, settings)
    sums = pair_sums(losses.loss_P, losses.chosen_reward_P, losses.rejected_reward_P)
    sums["logps/chosen"] = float(chosen.logp_P.detach().sum())
    sums["logps/rejected"] = float(rejected.logp_P.detach().sum())
    return step_mean(losses.loss_P, data), sums


class DpoTrainer(PairTrainer):
    """The reference never changes, so its log-probabilities are computed once for each pair that the run will meet, by
    the training workers themselves before their first step, when their weights are the reference's: no second model is
    held. They are kept with each training state.
    """

    def _build_engine(self) -> None:
        super()._build_engine()
        # Its methods are the worker's.
        self._workers: Any = self.training_client
        self._workers.set_loss_fn(loss_fn=partial(dpo_loss, settings=self._settings))

    @property
    def _settings(self) -> DpoLoss:
        task = self._context.plan.task
        assert isinstance(task, DpoTask)
        return task.loss

    def before_load(self) -> None:
        if not self._settings.has_reference:
            return
        plan = self._context.plan
        references = torch.full((len(self.train_dataset), 2), torch.nan)
        if plan.resume_from is not None:
            kept = load_file(resume_folder(plan.resume_from) / REFERENCES)["references"]
            if kept.shape != references.shape:
                raise ValueError(f"the training state is of {len(kept)} pairs, not of {len(references)}")
            references = kept
        self.train_dataset.references = references
        met = met_by(
            self.train_sampler, self.global_batch_size, self.steps_per_epoch, plan.start_step, plan.total_steps
        )
        missing = [pair for pair in sorted(met) if references[pair].isnan().any()]
        if missing:
            self._context.spool.append(Phase(phase="reference", step=plan.start_step, total_steps=plan.total_steps))
        for done, pairs in enumerate(batches(missing, self.global_batch_size), start=1):
            if self._context.reporter.stop_requested():
                raise StopRequestedError
            references[pairs] = self._reference(pairs)
            print(f"reference: {min(done * self.global_batch_size, len(missing))} of {len(missing)} pairs", flush=True)

    def after_save(self, folder: Path) -> None:
        if self._settings.has_reference:
            save_file({"references": self.train_dataset.references}, folder / REFERENCES)

    def _reference(self, pairs: list[int]) -> Tensor:
        """Log-probabilities of the answers of P pairs, (P, 2), under the weights without an adapter."""
        config = self.config
        rows = collate([self.train_dataset[pair] for pair in pairs])
        masks = rows["loss_mask"]
        settings = {
            "use_remove_padding": config.model.use_remove_padding,
            "use_dynamic_bsz": False,
            "micro_batch_size_per_gpu": config.data.micro_batch_size_per_gpu,
            "temperature": 1.0,
            "global_batch_size": self.global_batch_size,
            "pad_mode": config.data.pad_mode,
            "pad_token_id": self.model_config.tokenizer.pad_token_id,
        }
        data = tu.get_tensordict(tensor_dict=rows, non_tensor_dict=settings)
        lengths = NonTensorData(masks.offsets().diff().tolist())
        tu.assign_non_tensor(
            data, compute_loss=False, no_lora_adapter=self._context.plan.adapter, global_token_num=lengths
        )
        logps = self._workers.infer_batch(data).get()["log_probs"]
        logp_R, _ = sum_answers(logps.values().float(), masks.values(), masks.offsets())
        return logp_R.reshape(-1, 2)


def met_by(sampler: DistributedSampler, batch_size: int, steps_per_epoch: int, start: int, total: int) -> set[int]:
    """The rows that steps `start` + 1 to `total` are made of."""
    met: set[int] = set()
    for epoch in range(start // steps_per_epoch, math.ceil(total / steps_per_epoch)):
        sampler.set_epoch(epoch)
        order = list(sampler)
        steps = (bound - epoch * steps_per_epoch for bound in (start, total))
        first, last = (min(max(step, 0), steps_per_epoch) * batch_size for step in steps)
        met.update(order[first:last])
        if len(met) == len(order):
            break
    return met


def batches(rows: Iterable[int], size: int) -> Iterator[list[int]]:
    """In batches of `size`; the last is filled up with its own rows, because verl's workers want equal shares."""
    rest = list(rows)
    for start in range(0, len(rest), size):
        batch = rest[start : start + size]
        yield (batch * size)[:size] if len(batch) < size else batch


train = partial(sft.train, kind=DpoTrainer)
