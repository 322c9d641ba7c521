"""verl's synchronous PPO trainer, with our rows, our reporting, our checkpoints and a stop at the step boundary."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any

import transfer_queue as tq
from omegaconf import OmegaConf
from verl.trainer.ppo.v1 import trainer_base
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils.debug import marked_timer

from services import rewards
from services.mesh.runs.process import StopRequestedError
from services.mesh.runs.spool import Sample, SampleBatch
from services.trainer.verl.checkpoints import resume_folder
from services.trainer.verl.configuration import answers_in_batches, rl_config
from services.trainer.verl.context import RunContext
from services.trainer.verl.rollout import agent_loop_report
from services.trainer.verl.rollout.batch_generation import BatchGeneration
from services.trainer.verl.rollout.rewards import RunRewards
from services.trainer.verl.trainers.datasets import PromptRows, TooFewRowsError
from services.trainer.verl.verification.resume_check import check_position, write_position

# verl looks every two seconds whether answers are complete.
REPLAY_POLL_SECONDS = 0.02


class UniformRewardsError(Exception):
    """Too few prompts have answers of different reward: there is nothing to learn from."""


class RlTrainer(PPOTrainerSync):
    def __init__(self, context: RunContext, config: Any) -> None:
        self._context = context
        # Prompts that the step has asked to be answered.
        self._asked = 0
        super().__init__(config)
        self.replay_buffer.poll_interval = REPLAY_POLL_SECONDS
        self.replay_buffer._select_prompt_uids = partial(first_asked, self.replay_buffer)
        # verl calls it after each save.
        self.checkpoint_callback = self

    def on_save(self, trainer: object, global_step: int, checkpoint_dir: str, **_: object) -> None:
        """verl's checkpoint callback."""
        folder = Path(checkpoint_dir)
        write_position(folder, global_step, self.train_dataloader)
        self._context.publisher.publish(
            global_step, folder, folder / "actor", sample=not self._context.reporter.stopped
        )

    def prepare_step(self) -> dict[str, Any]:
        # Our engine's answers are generated here, not while the buffer is sampled; both are the rollout.
        with marked_timer("gen", self.timing_raw):
            self._asked = self.config.data.train_batch_size
            return super().prepare_step()

    def _add_prompts_to_generate(self, num_prompts: int) -> int:
        """verl's call for further prompts in the place of those whose answers all had the same reward; without end."""
        wanted = self.config.data.train_batch_size
        if self._asked >= self.config.algorithm.filter_groups.max_num_gen_batches * wanted:
            mixed = len(self.replay_buffer.finished_keys["train"])
            raise UniformRewardsError(
                f"step {self.global_steps}: of {self._asked} prompts only {mixed} had answers of different reward, and "
                f"a step needs {wanted}"
            )
        self._asked += num_prompts
        return super()._add_prompts_to_generate(num_prompts)

    def step(self, metrics: dict[str, Any], timing_raw: dict[str, float]) -> Any:
        loader, last = self.train_dataloader, self.global_steps - 1
        unsaved = last > max(self._context.plan.start_step, self._context.publisher.last_step)
        standing = loader.state_dict() if unsaved else {}
        try:
            return super().step(metrics, timing_raw)
        except (UniformRewardsError, rewards.RewardError, StopRequestedError):
            # The first often means that all has been learnt: what the steps before have made is kept.
            self.global_steps = last
            if unsaved:
                # Before this step's prompts were drawn: who goes on from here must meet them.
                loader.state_dict = lambda: standing
                self._save_checkpoint()
            raise

    def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
        if not answers_in_batches(self._context.plan):
            decode = partial(self.tokenizer.decode, skip_special_tokens=True)
            agent_loop_report.report(batch, decode, self._context.reporter.add, partial(_show, self._context, self))
        return super()._compute_advantage(batch, metrics=metrics)

    def _compute_values(self, batch: Any, metrics: dict[str, Any]) -> Any:
        # What verl has set for the reference's log-probabilities stays set, and a critic has no adapter to leave out.
        batch.extra_info.pop("no_lora_adapter", None)
        return super()._compute_values(batch, metrics=metrics)

    def on_step_end(self) -> None:
        if self._context.reporter.stop_requested():
            if self._context.publisher.last_step != self.global_steps:
                self._save_checkpoint()
            # The loop ends after it has logged this step.
            self.total_training_steps = self.global_steps
        else:
            super().on_step_end()


def first_asked(
    buffer: ReplayBuffer, partition_id: str, sampleable_keys: set[str], batch_size: int
) -> tuple[list[str], dict[str, dict[str, Any]], dict[str, int]]:
    """Of more prompts than a step needs, those that were asked first: as DAPO's algorithm has it, and the same ones
    when the run is made again. verl takes them as they come out of a set of random names.
    """
    answers = dict(buffer.partitions[partition_id])
    # Answers are listed in the order in which they were stored, a prompt's under the prompt's name. One without
    # answers, as a server that fails leaves it, comes last.
    asked = dict.fromkeys([*(key.split("_")[0] for key in answers), *sorted(sampleable_keys)])
    chosen = [name for name in asked if name in sampleable_keys][:batch_size]
    return chosen, answers, dict(buffer.prompt_global_steps[partition_id])


def train(context: RunContext) -> None:
    """Carry out an RL plan; returns after the last step, or the one at which a stop was asked for."""
    context.publisher.check_base()
    config = rl_config(context.plan)
    OmegaConf.resolve(config)
    _use_our_rows(context)
    if answers_in_batches(context.plan):
        _without_load_balancer()
    setattr(trainer_base, "Tracking", lambda **_: context.reporter)  # noqa: B010  (verl exports it not)
    # The queue's processes take as long to start as the trainer's, which don't need it before the first step.
    queue = ThreadPoolExecutor(max_workers=1).submit(tq.init, config.transfer_queue)
    judges: RunRewards | None = None
    try:
        trainer: Any = RlTrainer(context, config)  # type: ignore[abstract]  (pyright misses the base's methods)
        trainer.init()
        if context.plan.resume_from and trainer.global_steps != context.plan.resume_from.step:
            raise ValueError(f"the training state resumed at step {trainer.global_steps}")
        if point := context.plan.resume_from:
            check_position(resume_folder(point), trainer.global_steps, trainer.train_dataloader)
        queue.result()
        judges = RunRewards(context) if answers_in_batches(context.plan) else None
        manager = _manager(context, config, trainer, judges)
        context.training_begins()
        trainer.fit(manager)
    finally:
        # Whatever became of it: only what was made is closed.
        if judges is not None:
            judges.close()
        wait([queue])
        tq.close()


def _without_load_balancer() -> None:
    """verl starts a process that shares single requests out among servers; our batches are shared out by hand."""

    async def none(manager: Any) -> None:
        manager.global_load_balancer = None

    trainer_base.LLMServerManager._init_global_load_balancer = none  # type: ignore[attr-defined]


def _use_our_rows(context: RunContext) -> None:
    """verl builds its datasets through this function; held-out rows are the side process's business."""

    def create(_files: Any, config: Any, tokenizer: Any, _processor: Any, is_train: bool = True, **_: object) -> Any:
        if not is_train:
            return []
        plan = context.plan
        rows = PromptRows(Path(plan.train_path), tokenizer, plan.max_tokens, context.report_left_out)
        if len(rows) < config.train_batch_size:
            # verl leaves out a pass's last rows that fill no step, and divides by the number of steps.
            raise TooFewRowsError(len(rows), config.train_batch_size)
        return rows

    setattr(trainer_base, "create_rl_dataset", create)  # noqa: B010  (verl exports it not)


def _manager(context: RunContext, config: Any, trainer: Any, judges: RunRewards | None) -> Any:
    if judges is None:
        from verl.trainer.ppo.v1 import AgentLoopManagerTQ

        return AgentLoopManagerTQ.create(
            config=config,
            llm_client=trainer.get_llm_client(),
            teacher_client=trainer.get_teacher_client(),
            reward_loop_worker_handles=trainer.get_reward_handles(),
        )

    servers = [server for replica in trainer.llm_server_manager.get_replicas() for server in replica.servers]
    show = partial(_show, context, trainer)
    return BatchGeneration(config, trainer.tokenizer, servers, judges, context.reporter.add, show)


def _show(context: RunContext, trainer: Any, samples: list[Sample]) -> None:
    context.spool.append(SampleBatch(step=trainer.global_steps, split="rollout", samples=samples))
