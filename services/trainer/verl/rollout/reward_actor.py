"""A reward model in a Ray actor of its own: beside the run's processes, wanting no slot of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from services.rewards import RewardSample

# Between two looks at whether the run is to stop.
_POLL_SECONDS = 0.2


class RewardModelActor:
    def __init__(self, folder: str) -> None:
        import torch

        from services.trainer.verifier.reward_scoring import LocalScorer

        torch.set_num_threads(1)
        self._scorer = LocalScorer(folder)

    def ready(self) -> bool:
        return True

    def score(self, samples: Sequence[RewardSample]) -> list[float]:
        return self._scorer.score(samples)


class ActorScorer:
    """See `rewards.ModelScorer`. All of a run that name one folder share one actor."""

    def __init__(self, folder: str, check: Callable[[], None]) -> None:
        """Raises RewardError where it does not load, and what `check` raises while it does."""
        self._check = check
        # The folder is on this node, where the job's worker has brought it.
        here = NodeAffinitySchedulingStrategy(node_id=ray.get_runtime_context().get_node_id(), soft=False)
        actor: Any = ray.remote(RewardModelActor)
        self._actor: Any = actor.options(
            name=f"reward_model_{hashlib.sha256(folder.encode()).hexdigest()[:16]}",
            get_if_exists=True,
            num_cpus=0,
            scheduling_strategy=here,
        ).remote(folder)
        self._result(self._actor.ready.remote())

    def score(self, samples: Sequence[RewardSample]) -> list[float]:
        return self._result(self._actor.score.remote(list(samples)))

    def _result(self, pending: Any) -> Any:
        while not ray.wait([pending], timeout=_POLL_SECONDS)[0]:
            self._check()
        return ray.get(pending)

    def close(self) -> None:
        """It ends with the run, for another judge may share it."""
