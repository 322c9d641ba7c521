"""TrainerService in memory, for tests of the command: jobs that pretend to train, at a pace that the test sets."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.empty_pb2 import Empty
from google.protobuf.json_format import MessageToDict
from rlhf.trainer.v1 import model_pb2, training_job_pb2
from rlhf.trainer.v1 import trainer_service_pb2 as rpc
from rlhf.trainer.v1.trainer_service_pb2_grpc import TrainerServiceServicer
from rlhf.type.v1 import checkpoint_pb2, job_state_pb2, job_warning_pb2, log_line_pb2, metric_point_pb2, sample_pb2
from rlhf.type.v1.registry_entry_pb2 import RegistryEntry

from services.mesh import registry
from services.mesh.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from services.mesh.validation import params
from services.rewards import rewards
from services.trainer.algorithms import algorithms, schema

Job = training_job_pb2.TrainingJob
_TERMINAL = (job_state_pb2.JOB_STATE_SUCCEEDED, job_state_pb2.JOB_STATE_FAILED, job_state_pb2.JOB_STATE_CANCELLED)
WEIGHTS = {"config.json": b'{"model_type": "llama"}', "model.safetensors": bytes(range(256)) * 20}
FILES = [
    checkpoint_pb2.ArtifactFile(path=path, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    for path, data in WEIGHTS.items()
]


@dataclass
class Running:
    """A job and what it has reported."""

    job: Job
    states: list[Job] = field(default_factory=list)
    # By the sequence of each.
    warned: dict[int, job_warning_pb2.JobWarning] = field(default_factory=dict)
    points: list[metric_point_pb2.MetricPoint] = field(default_factory=list)
    lines: list[log_line_pb2.LogLine] = field(default_factory=list)
    samples: list[sample_pb2.Sample] = field(default_factory=list)
    checkpoints: list[checkpoint_pb2.Checkpoint] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        return self.job.state in _TERMINAL

    def move(self, state: job_state_pb2.JobState.ValueType) -> None:
        self.job.state = state
        self.job.sequence += 1
        self.states.append(Job.FromString(self.job.SerializeToString()))


class FakeTrainer(TrainerServiceServicer):
    """`step_seconds` is the pace; `fail_at` a step at which jobs fail; `break_streams` how many streams of a job break
    after their first message; `scores` the held-out score by algorithm at the first and the last step."""

    def __init__(self) -> None:
        self.models: dict[str, model_pb2.Model] = {}
        self.running: dict[str, Running] = {}
        self.tasks: list[asyncio.Task[None]] = []
        self.step_seconds = 0.0
        self.fail_at = 0
        self.warn_at = 0
        self.break_streams = 0
        self.import_error = ""
        self.corrupt_downloads = False
        self.download_offsets: list[int] = []
        self.scores = {"sft": (0.0, 0.5), "grpo": (0.5, 0.75)}

    async def ImportModel(self, request: rpc.ImportModelRequest, context: Any) -> model_pb2.Model:
        name = f"{request.parent}/models/{request.model_id}"
        if name in self.models:
            raise AlreadyExists("MODEL_EXISTS", f"there is a {name} already", name=name)
        made = model_pb2.Model(name=name, state=model_pb2.Model.STATE_IMPORTING)
        made.MergeFrom(request.model)
        made.create_time.GetCurrentTime()
        self.models[name] = made
        return made

    async def GetModel(self, request: rpc.GetModelRequest, context: Any) -> model_pb2.Model:
        """The second look finds an import done."""
        if request.name not in self.models:
            raise NotFound("MODEL_NOT_FOUND", f"there is no {request.name}")
        found = self.models[request.name]
        if found.state == model_pb2.Model.STATE_IMPORTING and self.import_error:
            found.state, found.error.message = model_pb2.Model.STATE_FAILED, self.import_error
        elif found.state == model_pb2.Model.STATE_IMPORTING:
            found.state, found.architecture, found.parameter_count = (
                model_pb2.Model.STATE_READY,
                "LlamaForCausalLM",
                642_048,
            )
            found.context_length, found.size_bytes = 64, 2_570_000
            found.files.extend(FILES)
        return found

    async def DownloadModel(self, request: Any, context: Any) -> AsyncIterator[rpc.DownloadModelResponse]:
        async for offset, chunk in self._bytes(request):
            yield rpc.DownloadModelResponse(offset_bytes=offset, chunk=chunk)

    async def ListModels(self, request: rpc.ListModelsRequest, context: Any) -> rpc.ListModelsResponse:
        return rpc.ListModelsResponse(models=self.models.values())

    async def DeleteModel(self, request: rpc.DeleteModelRequest, context: Any) -> Empty:
        if any(found.job.base_model == request.name and not found.ended for found in self.running.values()):
            raise FailedPrecondition("MODEL_IN_USE", f"{request.name} cannot be deleted: a job starts from it")
        self.models.pop(request.name)
        return Empty()

    async def CreateTrainingJob(self, request: rpc.CreateTrainingJobRequest, context: Any) -> Job:
        job = Job.FromString(request.training_job.SerializeToString())
        try:
            parsed = params.parse(algorithms.get(job.algorithm).Params, MessageToDict(job.params))
        except InvalidArgument as error:
            raise InvalidArgument(violation.under("training_job") for violation in error.violations) from None
        job.name = f"{request.parent}/trainingJobs/{request.training_job_id}"
        job.params.update(params.to_json(parsed))
        job.total_step_count = parsed.steps or 10
        job.create_time.GetCurrentTime()
        job.state = job_state_pb2.JOB_STATE_QUEUED
        if not request.validate_only:
            self.running[job.name] = Running(job)
            self.tasks.append(asyncio.create_task(self._train(self.running[job.name])))
        return job

    async def GetTrainingJob(self, request: rpc.GetTrainingJobRequest, context: Any) -> Job:
        return self._find(request.name).job

    async def ListTrainingJobs(self, request: Any, context: Any) -> rpc.ListTrainingJobsResponse:
        jobs = [found.job for found in reversed(self.running.values())]
        return rpc.ListTrainingJobsResponse(
            training_jobs=[job for job in jobs if not request.states or job.state in request.states]
        )

    async def CancelTrainingJob(self, request: rpc.CancelTrainingJobRequest, context: Any) -> Job:
        found = self._find(request.name)
        if found.ended:
            raise FailedPrecondition("JOB_ENDED", f"{request.name} has ended")
        found.move(job_state_pb2.JOB_STATE_CANCELLING)
        return found.job

    async def DeleteTrainingJob(self, request: rpc.DeleteTrainingJobRequest, context: Any) -> Empty:
        if not self._find(request.name).ended:
            raise FailedPrecondition("JOB_NOT_ENDED", f"{request.name} has not ended; cancel it")
        del self.running[request.name]
        return Empty()

    async def StreamJobEvents(self, request: Any, context: Any) -> AsyncIterator[rpc.StreamJobEventsResponse]:
        found, sequence = self._find(request.name), request.after_sequence
        while True:
            states = [rpc.StreamJobEventsResponse(training_job=one, last_sequence=one.sequence) for one in found.states]
            states += [rpc.StreamJobEventsResponse(warning=w, last_sequence=n) for n, w in found.warned.items()]
            for event in sorted(states, key=lambda one: one.last_sequence):
                if event.last_sequence > sequence:
                    sequence = event.last_sequence
                    yield event
                    self._break()
            if found.ended:
                return
            yield rpc.StreamJobEventsResponse(last_sequence=sequence)
            self._break()
            await asyncio.sleep(0.02)

    async def StreamMetrics(self, request: Any, context: Any) -> AsyncIterator[rpc.StreamMetricsResponse]:
        found, ordinal = self._find(request.name), request.after_ordinal
        while True:
            ended, fresh = found.ended, found.points[ordinal:]
            if fresh:
                ordinal = fresh[-1].ordinal
                wanted = [point for point in fresh if not request.metrics or point.metric in request.metrics]
                yield rpc.StreamMetricsResponse(points=wanted, last_ordinal=ordinal)
                self._break()
            if ended or request.stored_only:
                return
            await asyncio.sleep(0.02)

    async def StreamLogs(self, request: Any, context: Any) -> AsyncIterator[rpc.StreamLogsResponse]:
        found, ordinal = self._find(request.name), request.after_ordinal
        while True:
            ended, fresh = found.ended, found.lines[ordinal:]
            if fresh:
                ordinal = fresh[-1].ordinal
                yield rpc.StreamLogsResponse(lines=fresh, last_ordinal=ordinal)
                self._break()
            if ended or request.stored_only:
                return
            await asyncio.sleep(0.02)

    async def ListSamples(self, request: rpc.ListSamplesRequest, context: Any) -> rpc.ListSamplesResponse:
        found = self._find(request.parent).samples
        return rpc.ListSamplesResponse(
            samples=[s for s in found if not request.HasField("step") or s.step == request.step][: request.page_size]
        )

    async def GetCheckpoint(self, request: rpc.GetCheckpointRequest, context: Any) -> checkpoint_pb2.Checkpoint:
        for found in self._find(request.name.partition("/checkpoints/")[0]).checkpoints:
            if found.name == request.name:
                return found
        raise NotFound("CHECKPOINT_NOT_FOUND", f"there is no {request.name}")

    async def ListCheckpoints(self, request: rpc.ListCheckpointsRequest, context: Any) -> rpc.ListCheckpointsResponse:
        return rpc.ListCheckpointsResponse(checkpoints=reversed(self._find(request.parent).checkpoints))

    async def DeleteCheckpoint(self, request: rpc.DeleteCheckpointRequest, context: Any) -> checkpoint_pb2.Checkpoint:
        found = await self.GetCheckpoint(rpc.GetCheckpointRequest(name=request.name), context)
        if not request.force:
            raise FailedPrecondition("CHECKPOINT_IN_USE", f"{request.name} cannot be deleted: next uses it; force it")
        found.state = checkpoint_pb2.Checkpoint.STATE_PRUNED
        return found

    async def DownloadCheckpoint(self, request: Any, context: Any) -> AsyncIterator[rpc.DownloadCheckpointResponse]:
        async for offset, chunk in self._bytes(request):
            yield rpc.DownloadCheckpointResponse(offset_bytes=offset, chunk=chunk)

    async def _bytes(self, request: Any) -> AsyncIterator[tuple[int, bytes]]:
        content, offset = WEIGHTS[request.path], request.offset_bytes
        self.download_offsets.append(offset)
        if self.corrupt_downloads:
            content = content[:-1] + b"?"
        while offset < len(content):
            yield offset, content[offset : offset + 1000]
            offset += 1000
            self._break()

    async def ListAlgorithms(self, request: Any, context: Any) -> rpc.ListAlgorithmsResponse:
        answer = rpc.ListAlgorithmsResponse()
        for name, entry in algorithms.items():
            added = answer.algorithms.add(
                entry=RegistryEntry(id=name, summary=registry.summary(entry), description=entry.__doc__ or ""),
                dataset_formats=entry.dataset_formats,
                validation_formats=entry.validation_formats,
            )
            for one in entry.headline_metrics:
                added.headline_metrics.add(metric=one.metric, title=one.title)
            added.entry.params_schema.update(schema.schema(name))
        return answer

    async def ListRewards(self, request: Any, context: Any) -> rpc.ListRewardsResponse:
        answer = rpc.ListRewardsResponse()
        for name, entry in rewards.items():
            added = answer.rewards.add(entry=RegistryEntry(id=name, summary=registry.summary(entry)))
            added.entry.description = inspect.getdoc(entry) or ""
            added.entry.params_schema.update(params.schema(entry.Params))
        return answer

    def _find(self, name: str) -> Running:
        if name not in self.running:
            raise NotFound("JOB_NOT_FOUND", f"there is no {name}", name=name)
        return self.running[name]

    def _break(self) -> None:
        if self.break_streams:
            self.break_streams -= 1
            raise Unavailable("UNAVAILABLE", "the test breaks the connection here")

    async def _train(self, found: Running) -> None:
        await asyncio.sleep(0.05)
        job = found.job
        job.start_time.GetCurrentTime()
        job.attempts.add(number=1)
        job.phase = "training"
        found.move(job_state_pb2.JOB_STATE_RUNNING)
        self._validate(found, 0, self.scores[job.algorithm][0])
        for step in range(1, job.total_step_count + 1):
            await asyncio.sleep(self.step_seconds)
            if job.state == job_state_pb2.JOB_STATE_CANCELLING:
                return self._end(found, job_state_pb2.JOB_STATE_CANCELLED)
            if step == self.fail_at:
                job.error.message = (
                    "the model does not fit: CUDA out of memory in the rollout\nWhat to do: lower samples_per_prompt"
                )
                return self._end(found, job_state_pb2.JOB_STATE_FAILED)
            self._step(found, step)
            if step == self.warn_at:
                job.sequence += 1
                found.warned[job.sequence] = job.warnings.add(
                    reason="GRADIENT_ZERO", message="it was 0", remedy="look", first_step=step, count=1, attempt=1
                )
        self._save(found, job.total_step_count, self.scores[job.algorithm][1])
        return self._end(found, job_state_pb2.JOB_STATE_SUCCEEDED)

    def _step(self, found: Running, step: int) -> None:
        found.job.step_count = step
        main = "train/loss" if found.job.algorithm == "sft" else "reward/mean"
        self._point(found, main, step, 1 / step)
        self._point(found, "actor/kl", step, math.nan if step == 2 else 0.001 * step)
        self._point(found, "verl/actor/loss", step, 0)
        line = found.lines
        line.append(
            log_line_pb2.LogLine(text=f"\x1b[31mstep {step}\x1b[0m of training", ordinal=len(line) + 1, attempt=1)
        )

    def _validate(self, found: Running, step: int, score: float) -> None:
        rows = int(MessageToDict(found.job.params)["validation"]["rows"])
        self._point(found, "validation/score/mean", step, round(score * rows) / rows)
        self._point(found, "validation/score/count", step, rows)
        for row in range(rows):
            right = row < round(score * rows)
            sample = sample_pb2.Sample(split="validation", step=step, row_index=row, score=float(right))
            sample.prompt, sample.answer = f"<|user|>3120{row}[/b]\n", f"0123{row}"
            sample.completion = sample.answer if right else "3[red]"
            sample.parts["correct"] = sample.score
            found.samples.append(sample)

    def _save(self, found: Running, step: int, score: float) -> None:
        self._validate(found, step, score)
        made = checkpoint_pb2.Checkpoint(
            name=f"{found.job.name}/checkpoints/step-{step}", step=step, state=checkpoint_pb2.Checkpoint.STATE_READY,
            kind=checkpoint_pb2.Checkpoint.KIND_FULL, files=FILES, size_bytes=sum(map(len, WEIGHTS.values())),
            metrics={"validation/score/mean": score, "validation/loss": 2.5}, parents=[found.job.base_model],
        )  # fmt: skip
        found.checkpoints.append(made)

    def _point(self, found: Running, metric: str, step: int, value: float) -> None:
        point = metric_point_pb2.MetricPoint(metric=metric, step=step, value=value, attempt=1)
        point.ordinal = len(found.points) + 1
        point.observe_time.GetCurrentTime()
        found.points.append(point)

    def _end(self, found: Running, state: job_state_pb2.JobState.ValueType) -> None:
        found.job.end_time.GetCurrentTime()
        found.move(state)
