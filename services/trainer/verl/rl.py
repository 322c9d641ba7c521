"""verl's synchronous PPO trainer, with our rows, our reporting, our checkpoints and a stop at the step boundary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transfer_queue as tq
import verl.trainer.ppo.v1.trainer_base as trainer_base
from omegaconf import OmegaConf
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils.debug import marked_timer

from services.trainer.spool import Sample, SampleBatch
from services.trainer.verl.configuration import rl_config
from services.trainer.verl.context import RunContext
from services.trainer.verl.datasets import PromptRows
from services.trainer.verl.generation import BatchGeneration

# verl looks every two seconds whether answers are complete.
REPLAY_POLL_SECONDS = 0.02


class RlTrainer(PPOTrainerSync):
    def __init__(self, context: RunContext, config: Any) -> None:
        self._context = context
        super().__init__(config)
        self.replay_buffer.poll_interval = REPLAY_POLL_SECONDS
        # verl calls it after each save.
        self.checkpoint_callback = self

    def on_save(self, trainer: object, global_step: int, checkpoint_dir: str, **_: object) -> None:
        """verl's checkpoint callback."""
        folder = Path(checkpoint_dir)
        self._context.publisher.publish(
            global_step, folder, folder / "actor", sample=not self._context.reporter.stopped
        )

    def prepare_step(self) -> dict[str, Any]:
        # On CPU answers are generated here, not while the buffer is sampled; both are the rollout.
        with marked_timer("gen", self.timing_raw):
            return super().prepare_step()

    def on_step_end(self) -> None:
        if self._context.reporter.stop_requested():
            if self._context.publisher.last_step != self.global_steps:
                self._save_checkpoint()
            # The loop ends after it has logged this step.
            self.total_training_steps = self.global_steps
        else:
            super().on_step_end()


def train(context: RunContext) -> None:
    """Carry out an RL plan; returns after the last step, or the one at which a stop was asked for."""
    config = rl_config(context.plan)
    OmegaConf.resolve(config)
    _use_our_rows(context)
    trainer_base.Tracking = lambda **_: context.reporter
    tq.init(config.transfer_queue)
    try:
        trainer = RlTrainer(context, config)
        trainer.init()
        if context.plan.resume_from and trainer.global_steps != context.plan.resume_from.step:
            raise ValueError(f"the training state resumed at step {trainer.global_steps}")
        manager = _manager(context, config, trainer)
        context.training_begins()
        trainer.fit(manager)
    finally:
        tq.close()


def _use_our_rows(context: RunContext) -> None:
    """verl builds its datasets through this function; held-out rows are the side process's business."""

    def create(_files: Any, _config: Any, tokenizer: Any, _processor: Any, is_train: bool = True, **_: object) -> Any:
        if not is_train:
            return []
        plan = context.plan
        return PromptRows(Path(plan.train_path), tokenizer, plan.max_tokens, context.report_left_out)

    trainer_base.create_rl_dataset = create


def _manager(context: RunContext, config: Any, trainer: RlTrainer) -> Any:
    if context.plan.device == "cuda":
        from verl.trainer.ppo.v1 import AgentLoopManagerTQ

        return AgentLoopManagerTQ.create(
            config=config,
            llm_client=trainer.get_llm_client(),
            teacher_client=trainer.get_teacher_client(),
            reward_loop_worker_handles=trainer.get_reward_handles(),
        )
    assert context.plan.reward is not None

    def show(samples: list[Sample]) -> None:
        context.spool.append(SampleBatch(step=trainer.global_steps, split="train", samples=samples))

    servers = [server for replica in trainer.llm_server_manager.get_replicas() for server in replica.servers]
    return BatchGeneration(config, trainer.tokenizer, servers, context.plan.reward, context.reporter.add, show)
