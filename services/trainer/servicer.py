"""TrainerService: wire → use case → wire."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from google.protobuf import empty_pb2
from rlhf.trainer.v1 import model_pb2, training_job_pb2
from rlhf.trainer.v1 import trainer_service_pb2 as pb
from rlhf.trainer.v1.trainer_service_pb2_grpc import TrainerServiceServicer
from rlhf.type.v1 import checkpoint_pb2

from services.mesh.jobs.wire import states
from services.mesh.rpc.idempotency import RequestKey
from services.mesh.rpc.pagination import PageRequest
from services.mesh.rpc.wellknown import struct
from services.mesh.streams.series import Series
from services.mesh.streams.wire import BatchMessages, sample
from services.rewards import rewards
from services.trainer import wire
from services.trainer.algorithms import algorithms
from services.trainer.checkpoints.service import Checkpoints
from services.trainer.models import wire as model_wire
from services.trainer.models.resolver import Resolver
from services.trainer.models.service import Models
from services.trainer.training.deletion import Deletion
from services.trainer.training.reward_dry_run import RewardTrials
from services.trainer.training.service import TrainingJobs


class Servicer(TrainerServiceServicer):
    def __init__(
        self,
        models: Models,
        resolver: Resolver,
        jobs: TrainingJobs,
        series: Series,
        checkpoints: Checkpoints,
        deletion: Deletion,
        trials: RewardTrials,
    ) -> None:
        self._models = models
        self._resolver = resolver
        self._jobs = jobs
        self._series = series
        self._checkpoints = checkpoints
        self._deletion = deletion
        self._trials = trials
        self._messages = BatchMessages(pb.StreamMetricsResponse, pb.StreamLogsResponse)

    async def ImportModel(self, request: pb.ImportModelRequest, context: Any) -> model_pb2.Model:
        new = model_wire.new_model(request)
        key = RequestKey.of(request.parent, request.request_id, request)
        model = await self._models.import_model(new, key, validate_only=request.validate_only)
        return model_wire.model(model) if model else request.model

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> model_pb2.Model:
        model, files = await self._models.get_with_files(request.name)
        return model_wire.model(model, files)

    async def ResolveModel(self, request: pb.ResolveModelRequest, context: Any) -> pb.ResolveModelResponse:
        return model_wire.resolved_model(await self._resolver.resolve(request.parent, request.model))

    async def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:
        page = await self._models.list(request.parent, _page(request, request.parent))
        return pb.ListModelsResponse(models=map(model_wire.model, page.items), next_page_token=page.next_token)

    async def DeleteModel(self, request: pb.DeleteModelRequest, context: Any) -> empty_pb2.Empty:
        await self._models.delete(request.name, force=request.force)
        return empty_pb2.Empty()

    async def DownloadModel(
        self, request: pb.DownloadModelRequest, context: Any
    ) -> AsyncIterator[pb.DownloadModelResponse]:
        async for offset, chunk in self._models.download(request.name, request.path, request.offset_bytes):
            yield pb.DownloadModelResponse(offset_bytes=offset, chunk=chunk)

    async def CreateTrainingJob(
        self, request: pb.CreateTrainingJobRequest, context: Any
    ) -> training_job_pb2.TrainingJob:
        new = wire.new_training_job(request)
        key = RequestKey.of(request.parent, request.request_id, request)
        if request.validate_only:
            return wire.checked_job(await self._jobs.check(new, key))
        return wire.training_job(await self._jobs.create(new, key))

    async def GetTrainingJob(self, request: pb.GetTrainingJobRequest, context: Any) -> training_job_pb2.TrainingJob:
        return wire.training_job(await self._jobs.get(request.name))

    async def ListTrainingJobs(self, request: pb.ListTrainingJobsRequest, context: Any) -> pb.ListTrainingJobsResponse:
        page_request = _page(request, request.parent, sorted(request.states))
        page = await self._jobs.list(request.parent, states(request.states), page_request)
        return pb.ListTrainingJobsResponse(
            training_jobs=map(wire.training_job, page.items), next_page_token=page.next_token
        )

    async def CancelTrainingJob(
        self, request: pb.CancelTrainingJobRequest, context: Any
    ) -> training_job_pb2.TrainingJob:
        return wire.training_job(await self._jobs.cancel(request.name))

    async def DeleteTrainingJob(self, request: pb.DeleteTrainingJobRequest, context: Any) -> empty_pb2.Empty:
        await self._deletion.delete_job(request.name, force=request.force)
        return empty_pb2.Empty()

    async def StreamJobEvents(
        self, request: pb.StreamJobEventsRequest, context: Any
    ) -> AsyncIterator[pb.StreamJobEventsResponse]:
        last = request.after_sequence
        async for event in self._jobs.events(request.name, last, request.stored_only):
            for message in wire.job_event(event) if event else [pb.StreamJobEventsResponse(last_sequence=last)]:
                last = message.last_sequence
                yield message

    async def StreamMetrics(
        self, request: pb.StreamMetricsRequest, context: Any
    ) -> AsyncIterator[pb.StreamMetricsResponse]:
        wanted, after = request.metrics, request.after_ordinal
        async for batch in self._series.metrics(request.name, after, wanted, request.stored_only):
            yield self._messages.metrics(batch)

    async def StreamLogs(self, request: pb.StreamLogsRequest, context: Any) -> AsyncIterator[pb.StreamLogsResponse]:
        async for batch in self._series.logs(request.name, request.after_ordinal, request.stored_only):
            yield self._messages.logs(batch)

    async def ListSamples(self, request: pb.ListSamplesRequest, context: Any) -> pb.ListSamplesResponse:
        step = request.step if request.HasField("step") else None
        page_request = _page(request, request.parent, step, request.split)
        page = await self._series.samples(request.parent, step, request.split, page_request)
        return pb.ListSamplesResponse(samples=map(sample, page.items), next_page_token=page.next_token)

    async def GetCheckpoint(self, request: pb.GetCheckpointRequest, context: Any) -> checkpoint_pb2.Checkpoint:
        return wire.checkpoint(*await self._checkpoints.get(request.name))

    async def ListCheckpoints(self, request: pb.ListCheckpointsRequest, context: Any) -> pb.ListCheckpointsResponse:
        page = await self._checkpoints.list(request.parent, _page(request, request.parent))
        found = map(wire.checkpoint, page.items)
        return pb.ListCheckpointsResponse(checkpoints=found, next_page_token=page.next_token)

    async def DeleteCheckpoint(self, request: pb.DeleteCheckpointRequest, context: Any) -> checkpoint_pb2.Checkpoint:
        return wire.checkpoint(await self._deletion.delete_checkpoint(request.name, force=request.force))

    async def DownloadCheckpoint(
        self, request: pb.DownloadCheckpointRequest, context: Any
    ) -> AsyncIterator[pb.DownloadCheckpointResponse]:
        wanted = (request.name, request.path, request.offset_bytes, request.allow_corrupt)
        async for offset, chunk in self._checkpoints.download(*wanted):
            yield pb.DownloadCheckpointResponse(offset_bytes=offset, chunk=chunk)

    async def ListAlgorithms(self, request: pb.ListAlgorithmsRequest, context: Any) -> pb.ListAlgorithmsResponse:
        return pb.ListAlgorithmsResponse(algorithms=(wire.algorithm(*item) for item in algorithms.items()))

    async def ListRewards(self, request: pb.ListRewardsRequest, context: Any) -> pb.ListRewardsResponse:
        return pb.ListRewardsResponse(rewards=(wire.reward(*item) for item in rewards.items()))

    async def TestReward(self, request: pb.TestRewardRequest, context: Any) -> pb.TestRewardResponse:
        samples = [wire.scoring_sample(sample) for sample in request.samples]
        trial = await self._trials.test(request.parent, request.reward_id, struct(request.params), samples)
        verdicts = map(wire.scoring_verdict, trial.verdicts)
        return pb.TestRewardResponse(verdicts=verdicts, elapsed_seconds=trial.elapsed_seconds)


def _page(request: Any, *filters: object) -> PageRequest:
    return PageRequest.parse(request.page_size, request.page_token, *filters)
