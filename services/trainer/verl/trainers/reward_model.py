"""A reward model on verl's SFT trainer: its loop, workers and resume; the engine and the loss are ours."""
# ruff: noqa: N806  (axes stand in names)

from __future__ import annotations

from functools import partial
from typing import Any

import ray
from torch import Tensor
from verl.single_controller.ray import RayClassWithInitArgs, RayResourcePool, RayWorkerGroup
from verl.workers.config import TrainingWorkerConfig
from verl.workers.engine_workers import TrainingWorker

from services.trainer.losses.bradley_terry import bradley_terry
from services.trainer.training.tasks import RewardModelLoss, RewardModelTask
from services.trainer.verl.patches.hooks import SEQUENCE_CLASSIFIER
from services.trainer.verl.trainers import sft
from services.trainer.verl.trainers.pairs import PairTrainer, pair_sums, step_mean


def reward_model_loss(
    model_output: dict[str, Any], data: Any, dp_group: Any = None, *, settings: RewardModelLoss
) -> tuple[Tensor, dict[str, float]]:
    """verl's signature of a loss: rows are chosen and rejected in turn. Runs in the training workers."""
    score_R = model_output["scores"].values().float()
    chosen_P, rejected_P = score_R[0::2], score_R[1::2]
    loss_P = bradley_terry(chosen_P, rejected_P, settings)
    return step_mean(loss_P, data), pair_sums(loss_P, chosen_P, rejected_P)


class RewardModelTrainer(PairTrainer):
    def _build_config(self) -> None:
        # transformers finds a row's last token by its padding, so rows are not packed.
        self.config.model.use_remove_padding = False
        super()._build_config()

    def _build_engine(self) -> None:
        """As verl's, which has no other model than a language model."""
        task = self._context.plan.task
        assert isinstance(task, RewardModelTask)
        config = TrainingWorkerConfig(
            model_type=SEQUENCE_CLASSIFIER,
            model_config=self.model_config,
            engine_config=self.engine_config,
            optimizer_config=self.optimizer_config,
            checkpoint_config=self.checkpoint_config,
            profiler_config=self.profiler_config,
        )
        trainer = self.config.trainer
        # Its methods are the worker's.
        client: Any = RayWorkerGroup(
            resource_pool=RayResourcePool(process_on_nodes=[trainer.n_gpus_per_node] * trainer.nnodes),
            ray_cls_with_init=RayClassWithInitArgs(ray.remote(TrainingWorker), config=config),
            device_name=trainer.device,
        )
        client.set_loss_fn(loss_fn=partial(reward_model_loss, settings=task.loss))
        client.reset()
        self.training_client = client


train = partial(sft.train, kind=RewardModelTrainer)
