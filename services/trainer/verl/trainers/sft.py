"""verl's SFT trainer, with our rows, our reporting, our checkpoints and an exact resume."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch.utils.data import DistributedSampler
from verl.trainer import sft_trainer_ray

from services.trainer.verl.checkpoints import resume_folder
from services.trainer.verl.configuration import epochs_for, sft_config
from services.trainer.verl.context import RunContext
from services.trainer.verl.trainers.datasets import ConversationRows, TooFewRowsError, Warn, ignore_warning
from services.trainer.verl.trainers.prefetch import PrefetchingLoader
from services.trainer.verl.verification.held_out import conversation, write_held_out
from services.trainer.verl.verification.resume_check import check_position, write_position


class SftTrainer(sft_trainer_ray.SFTTrainer):
    """What `_rows`, `_collator`, `write_held_out`, `before_load`, `after_save` and `metrics` give is what other losses
    change."""

    def __init__(self, context: RunContext) -> None:
        self._context = context
        super().__init__(sft_config(context.plan))

    def _rows(self, path: Path, report: Callable[..., None], warn: Warn = ignore_warning) -> Any:
        plan, tokenizer = self._context.plan, self.model_config.tokenizer
        return ConversationRows(path, tokenizer, plan.max_tokens, report, warn)

    def _collator(self) -> Any:
        return self.collate_fn

    def write_held_out(self) -> None:
        """Called when the rows are there: what a checkpoint's loss is taken on."""
        write_held_out(self._context.plan, self._context.spool, "messages", self._rows, conversation)

    def before_load(self) -> None:
        """Called when the weights are those of the base model, before a training state is loaded."""

    def after_save(self, folder: Path) -> None:
        """Called when verl has written a training state to `folder`."""

    def metrics(self, raw: Mapping[str, Any]) -> Mapping[str, Any]:
        """verl's metrics of a step, before they are reported."""
        return raw

    def _build_dataset(self) -> None:
        context = self._context
        self.train_dataset = self._rows(Path(context.plan.train_path), context.report_left_out, context.warn)
        # Held-out rows are the side process's business.
        self.val_dataset = None
        self.write_held_out()
        context.publisher.check_base()

    def _build_dataloader(self) -> None:
        """verl's loaders fork eight workers out of a process that has Ray's threads; rows are in memory here."""
        super()._build_dataloader()
        self.train_sampler = DistributedSampler(
            self.train_dataset, shuffle=True, num_replicas=1, rank=0, drop_last=True, seed=self._context.plan.seed
        )
        self.collate_fn = self._collator()
        self.train_dataloader = self._loader()
        self.steps_per_epoch = len(self.train_dataloader)
        if self.steps_per_epoch == 0:
            raise TooFewRowsError(len(self.train_dataset), self.global_batch_size)
        self.config.trainer.total_epochs = epochs_for(self.total_training_steps, self.steps_per_epoch)

    def _loader(self) -> PrefetchingLoader:
        return PrefetchingLoader(
            dataset=self.train_dataset,
            batch_size=self.train_batch_size_per_dp,
            sampler=self.train_sampler,
            collate_fn=self.collate_fn,
            drop_last=True,
        )

    def _build_ckpt_handler(self) -> None:
        super()._build_ckpt_handler()
        save, load = self.ckpt_handler.save_checkpoint, self.ckpt_handler.load_checkpoint

        def save_and_publish(step: int) -> None:
            save(step=step)
            folder = Path(self.config.trainer.default_local_dir) / f"global_step_{step}"
            write_position(folder, step, self.train_dataloader)
            self.after_save(folder)
            self._context.publisher.publish(step, folder, folder, sample=not self._context.reporter.stopped)

        def load_and_align() -> int:
            self.before_load()
            step = load()
            if step and step % self.steps_per_epoch == 0:
                # The saved loader stands at the end of its pass and would give nothing in the next.
                self.train_dataloader = self._loader()
            if point := self._context.plan.resume_from:
                check_position(resume_folder(point), step, self.train_dataloader)
            return step

        self.ckpt_handler.save_checkpoint = save_and_publish
        self.ckpt_handler.load_checkpoint = load_and_align


class _StoppingReporter:
    """verl's SFT loop asks after logging a step whether it was the last: a stop makes it so."""

    def __init__(self, context: RunContext, trainer: SftTrainer) -> None:
        self._context = context
        self._trainer = trainer

    def log(self, data: dict[str, Any], step: int, **_: object) -> None:
        rows = self._trainer.train_dataloader
        # What is left of a step is reporting, and a checkpoint where one is saved.
        self._context.reporter.add(
            {
                "time/data_seconds": rows.waited_seconds,
                "time/update_seconds": time.monotonic() - rows.handed_out_at,
            }
        )
        self._context.reporter.log(self._trainer.metrics(data), step)
        if self._context.reporter.stop_requested():
            self._trainer.total_training_steps = step

    def finish(self, exit_code: int = 0) -> None:
        pass


def train(context: RunContext, kind: type[SftTrainer] = SftTrainer) -> None:
    """Carry out a plan; returns after the last step, or the one at which a stop was asked for."""
    trainer = kind(context)
    if context.plan.resume_from and trainer.resume_global_step != context.plan.resume_from.step:
        raise ValueError(f"the training state resumed at step {trainer.resume_global_step}")
    setattr(sft_trainer_ray, "Tracking", lambda **_: _StoppingReporter(context, trainer))  # noqa: B010  (not exported)
    context.training_begins()
    trainer.fit()
