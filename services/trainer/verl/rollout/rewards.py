"""The rewards of a run at work: opened once, and patient with what they depend on."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

from services import rewards
from services.mesh.runs.process import StopRequestedError
from services.mesh.runs.spool import Problem
from services.rewards.spec import RewardSpec
from services.trainer.training.launch_plan import LaunchPlan, rl_task
from services.trainer.verl.context import RunContext
from services.trainer.verl.heartbeat import Repeated
from services.trainer.verl.rollout.reward_actor import ActorScorer

WAITING = "waiting_for_reward"
# Between two looks at whether the run is to stop.
_POLL_SECONDS = 0.2


class RunRewards:
    """The reward that is trained on, and the held-out one where the plan names one."""

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._waited = False
        self._told = Repeated(lambda: context.wait(WAITING))
        plan: LaunchPlan = context.plan
        task = rl_task(plan)
        surroundings = rewards.RewardContext(plan.reward_site, self._wait, self._check, self._load_model)
        with contextlib.ExitStack() as undo:
            self._reward = _open(task.reward, surroundings, undo)
            self._held_out = _open(task.held_out_reward, surroundings, undo) if task.held_out_reward else None
            self._judges = undo.pop_all()

    def score(self, samples: Sequence[rewards.RewardSample]) -> list[rewards.Score]:
        """One score a sample. Raises RewardError, StopRequestedError while it waits for a judge that is away."""
        return self._back(self._reward.score(samples))

    def held_out(self, samples: Sequence[rewards.RewardSample]) -> list[rewards.Score]:
        """Scores that nothing is trained on; none where the plan names no such reward. Raises as `score` does."""
        return self._back(self._held_out.score(samples)) if self._held_out is not None else []

    def close(self) -> None:
        self._judges.close()

    def _wait(self, why: str, seconds: float) -> None:
        """Say what is waited for, and sleep. Raises StopRequestedError when the run is told to stop."""
        if not self._waited:
            self._waited = True
            remedy = "the run goes on by itself once the judge answers; it can be cancelled meanwhile"
            step = self._context.reporter.last_step
            problem = Problem(
                severity="warning", reason="REWARD_WAITING", message=f"waiting: {why}", remedy=remedy, step=step
            )
            self._context.spool.append(problem)
            self._told = Repeated(lambda: self._context.wait(WAITING))
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._told()
            self._check()
            time.sleep(min(seconds, _POLL_SECONDS))

    def _check(self) -> None:
        if self._context.reporter.stop_requested():
            raise StopRequestedError

    def _load_model(self, folder: str) -> rewards.ModelScorer:
        return ActorScorer(folder, self._check)

    def _back(self, scores: list[rewards.Score]) -> list[rewards.Score]:
        if self._waited:
            self._waited = False
            self._context.wait("training")
        return scores


def _open(reward: RewardSpec, surroundings: rewards.RewardContext, undo: contextlib.ExitStack) -> rewards.Judge:
    return undo.enter_context(rewards.opened(reward.name, reward.params, surroundings))
