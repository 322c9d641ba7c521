"""What there is to train with."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf.trainer.v1 import trainer_service_pb2 as rpc
from rlhf.trainer.v1.training_job_pb2 import Algorithm, Reward

from services.client._async.resource import AsyncResource
from services.mesh.errors import NotFound


class AsyncAlgorithms(AsyncResource):
    """`params_schema` of each is the JSON Schema of its parameters."""

    async def list(self) -> Sequence[Algorithm]:
        return (
            await self._calls.call("ListAlgorithms", rpc.ListAlgorithmsRequest(), rpc.ListAlgorithmsResponse)
        ).algorithms

    async def get(self, algorithm_id: str) -> Algorithm:
        """Raises NotFound."""
        found = {each.algorithm_id: each for each in await self.list()}
        if algorithm_id not in found:
            known = ", ".join(found)
            raise NotFound("ALGORITHM_NOT_FOUND", f"there is no algorithm {algorithm_id!r}; there are {known}")
        return found[algorithm_id]


class AsyncRewards(AsyncResource):
    """`params_schema` of each is the JSON Schema of its parameters."""

    async def list(self) -> Sequence[Reward]:
        return (await self._calls.call("ListRewards", rpc.ListRewardsRequest(), rpc.ListRewardsResponse)).rewards

    async def get(self, reward_id: str) -> Reward:
        """Raises NotFound."""
        found = {each.reward_id: each for each in await self.list()}
        if reward_id not in found:
            raise NotFound("REWARD_NOT_FOUND", f"there is no reward {reward_id!r}; there are {', '.join(found)}")
        return found[reward_id]
