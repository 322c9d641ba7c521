"""What there is to train with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rlhf.trainer.v1 import trainer_service_pb2 as rpc
from rlhf.trainer.v1.training_job_pb2 import Algorithm, Reward
from rlhf.type.v1.scoring_pb2 import ScoringSample

from services.client._async.resource import AsyncResource
from services.client._async.training_jobs import AsyncTrainingJobs
from services.mesh.errors import NotFound
from services.mesh.rpc.wellknown import to_struct


class AsyncAlgorithms(AsyncResource):
    """`entry.params_schema` of each is the JSON Schema of its parameters."""

    async def list(self) -> Sequence[Algorithm]:
        return (
            await self._calls.call("ListAlgorithms", rpc.ListAlgorithmsRequest(), rpc.ListAlgorithmsResponse)
        ).algorithms

    async def get(self, algorithm_id: str) -> Algorithm:
        """Raises NotFound."""
        found = {each.entry.id: each for each in await self.list()}
        if algorithm_id not in found:
            known = ", ".join(found)
            raise NotFound("ALGORITHM_NOT_FOUND", f"there is no algorithm {algorithm_id!r}; there are {known}")
        return found[algorithm_id]


class AsyncRewards(AsyncResource):
    """`entry.params_schema` of each is the JSON Schema of its parameters."""

    async def list(self) -> Sequence[Reward]:
        return (await self._calls.call("ListRewards", rpc.ListRewardsRequest(), rpc.ListRewardsResponse)).rewards

    async def get(self, reward_id: str) -> Reward:
        """Raises NotFound."""
        found = {each.entry.id: each for each in await self.list()}
        if reward_id not in found:
            raise NotFound("REWARD_NOT_FOUND", f"there is no reward {reward_id!r}; there are {', '.join(found)}")
        return found[reward_id]

    async def test(
        self, reward_id: str, samples: Iterable[ScoringSample], params: Mapping[str, Any] | None = None
    ) -> rpc.TestRewardResponse:
        """Score samples as a training would: one verdict each, in order, with an error of its own where it can't be
        judged. A reward that loads a model takes a while: see `with_timeout`.

        Raises InvalidArgument with everything that is wrong, FailedPrecondition where the reward can't work.
        """
        full = await AsyncTrainingJobs(self._calls, self._project).reward_params(reward_id, params or {})
        request = rpc.TestRewardRequest(
            parent=self._project, reward_id=reward_id, samples=samples, params=to_struct(full)
        )
        return await self._calls.call("TestReward", request, rpc.TestRewardResponse)
