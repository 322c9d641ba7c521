"""What there is to train with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rlhf.trainer.v1 import trainer_service_pb2 as rpc
from rlhf.trainer.v1.training_job_pb2 import Algorithm, Reward
from rlhf.type.v1.scoring_pb2 import ScoringSample

from services.client._sync.resource import Resource
from services.client._sync.training_jobs import TrainingJobs
from services.mesh.errors import NotFound
from services.mesh.rpc.wellknown import to_struct


class Algorithms(Resource):
    """`entry.params_schema` of each is the JSON Schema of its parameters."""

    def list(self) -> Sequence[Algorithm]:
        return (self._calls.call("ListAlgorithms", rpc.ListAlgorithmsRequest(), rpc.ListAlgorithmsResponse)).algorithms

    def get(self, algorithm_id: str) -> Algorithm:
        """Raises NotFound."""
        found = {each.entry.id: each for each in self.list()}
        if algorithm_id not in found:
            known = ", ".join(found)
            raise NotFound("ALGORITHM_NOT_FOUND", f"there is no algorithm {algorithm_id!r}; there are {known}")
        return found[algorithm_id]


class Rewards(Resource):
    """`entry.params_schema` of each is the JSON Schema of its parameters."""

    def list(self) -> Sequence[Reward]:
        return (self._calls.call("ListRewards", rpc.ListRewardsRequest(), rpc.ListRewardsResponse)).rewards

    def get(self, reward_id: str) -> Reward:
        """Raises NotFound."""
        found = {each.entry.id: each for each in self.list()}
        if reward_id not in found:
            raise NotFound("REWARD_NOT_FOUND", f"there is no reward {reward_id!r}; there are {', '.join(found)}")
        return found[reward_id]

    def test(
        self, reward_id: str, samples: Iterable[ScoringSample], params: Mapping[str, Any] | None = None
    ) -> rpc.TestRewardResponse:
        """Score samples as a training would: one verdict each, in order, with an error of its own where it can't be
        judged. A reward that loads a model takes a while: see `with_timeout`.

        Raises InvalidArgument with everything that is wrong, FailedPrecondition where the reward can't work.
        """
        full = TrainingJobs(self._calls, self._project).reward_params(reward_id, params or {})
        request = rpc.TestRewardRequest(
            parent=self._project, reward_id=reward_id, samples=samples, params=to_struct(full)
        )
        return self._calls.call("TestReward", request, rpc.TestRewardResponse)
