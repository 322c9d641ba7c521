"""The streams of a trainer that behave as the last part of a job's name says."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from rlhf.trainer.v1 import trainer_service_pb2, training_job_pb2
from rlhf.type.v1 import job_state_pb2, log_line_pb2, metric_point_pb2

from services.mesh.errors import FailedPrecondition, NotFound

JOB = "/v1/projects/p/trainingJobs"
FLOOD = 8000
# Hexadecimal digits at random: hardly compressible.
FLOOD_TEXT = random.Random(0).randbytes(32 * 1024).hex()


@dataclass
class StreamsSeen:
    """What a reader made the service do."""

    pulled: int = 0
    may_go_on: asyncio.Event = field(default_factory=asyncio.Event)
    job_cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    cancels_pending: int = 0


class StreamingTrainer:
    seen: Any
    streams: StreamsSeen

    async def StreamMetrics(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """Five points; `silent` and `late` say nothing, the latter until it may go on to fail; `fails` breaks off."""
        self.seen.note(request, context)
        behaviour = request.name.rpartition("/")[2]
        if behaviour == "missing":
            raise NotFound("JOB_NOT_FOUND", "there is no such job", name=request.name)
        if behaviour == "silent":
            await self.seen.hang()
        if behaviour == "late":
            await self.streams.may_go_on.wait()
            raise FailedPrecondition("LATE", "it took a while to fail")
        for ordinal in range(request.after_ordinal + 1, 6):
            point = metric_point_pb2.MetricPoint(metric="a\u2028\n\rb", step=ordinal, value=0.5, ordinal=ordinal)
            yield trainer_service_pb2.StreamMetricsResponse(points=[point], last_ordinal=ordinal)
            if behaviour == "fails" and ordinal == 2:
                raise FailedPrecondition("BROKEN", "in mid-stream")
        if behaviour == "endless":
            await self.seen.hang()

    async def StreamLogs(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """Half a gigabyte."""
        try:
            for ordinal in range(1, FLOOD + 1):
                lines = [log_line_pb2.LogLine(text=FLOOD_TEXT, ordinal=ordinal)]
                yield trainer_service_pb2.StreamLogsResponse(lines=lines, last_ordinal=ordinal)
                self.streams.pulled += 1
        except (asyncio.CancelledError, GeneratorExit):
            self.seen.cancelled.set()
            raise

    async def StreamJobEvents(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """RUNNING, then what cancel makes of it."""
        self.seen.note(request, context)
        for sequence, state in ((2, job_state_pb2.JOB_STATE_RUNNING), (3, job_state_pb2.JOB_STATE_CANCELLED)):
            job = training_job_pb2.TrainingJob(name=request.name, state=state, sequence=sequence)
            yield trainer_service_pb2.StreamJobEventsResponse(training_job=job, last_sequence=sequence)
            if sequence == 2:
                await self.streams.job_cancelled.wait()

    async def CancelTrainingJob(self, request: Any, context: Any) -> Any:
        """`ended` refuses, `stuck` never answers."""
        self.seen.note(request, context)
        behaviour = request.name.rpartition("/")[2]
        if behaviour == "ended":
            raise FailedPrecondition("WRONG_STATE", "it has ended")
        if behaviour == "stuck":
            self.streams.cancels_pending += 1
            await self.seen.hang()
        self.streams.job_cancelled.set()
        return training_job_pb2.TrainingJob(name=request.name, state=job_state_pb2.JOB_STATE_CANCELLING)
