"""Proto ↔ dataclass, pure, both ways."""

from __future__ import annotations

import inspect
from datetime import datetime
from typing import Any

from google.rpc import error_details_pb2
from rlhf.event.v1 import checkpoint_changed_pb2, training_job_changed_pb2, training_job_warned_pb2
from rlhf.trainer.v1 import trainer_service_pb2, training_job_pb2
from rlhf.type.v1 import (
    checkpoint_pb2,
    job_attempt_pb2,
    job_error_pb2,
    job_state_pb2,
    job_warning_pb2,
    placement_pb2,
    registry_entry_pb2,
    scoring_pb2,
)

from services.mesh import registry
from services.mesh.artifacts import ArtifactFile, Manifest
from services.mesh.errors import InvalidArgument
from services.mesh.events.outbox import StoredEvent
from services.mesh.jobs.store import Attempt, Job, State
from services.mesh.jobs.warnings import JobWarning
from services.mesh.rpc.wellknown import status, struct, timestamp, to_struct
from services.mesh.validation import params
from services.rewards import Reward, RewardSample
from services.trainer.algorithms import Algorithm, schema
from services.trainer.entities import Checkpoint, NewTrainingJob, RewardVerdict, TrainingSpec
from services.trainer.training.input_references import inputs
from services.trainer.training.service import TrainingJob


def new_training_job(request: trainer_service_pb2.CreateTrainingJobRequest) -> NewTrainingJob:
    job = request.training_job
    return NewTrainingJob(
        parent=request.parent,
        id=request.training_job_id,
        algorithm=job.algorithm,
        base_model=job.base_model,
        dataset_version=job.dataset_version,
        validation_dataset_version=job.validation_dataset_version,
        params=struct(job.params),
        target=job.placement.target,
        gpu_count=job.placement.resources.gpu_count,
        priority=job.priority,
        labels=dict(job.labels),
        inputs={field.name: value for field, value in job.inputs.ListFields() if field.name != "reward_models"},
        reward_model_inputs=dict(job.inputs.reward_models),
        resume_from=job.resume_from,
    )


def training_job(found: TrainingJob) -> training_job_pb2.TrainingJob:
    job, message = found.job, checked_job(found.spec)
    message.name = job.name
    message.priority = job.priority
    message.state = job_state(job.state)
    if job.error:
        message.error.CopyFrom(status(job.error))
    message.attempts.extend(_attempt(attempt) for attempt in found.attempts)
    message.phase = job.progress.get("phase", "") if job.state in (State.RUNNING, State.CANCELLING) else ""
    message.step_count = job.progress.get("step_count", 0)
    message.total_step_count = job.progress.get("total_step_count", 0)
    message.sequence = job.sequence
    message.software.update(job.progress.get("software", {}))
    # Those of attempt 0 stand in the spec.
    for found_at_create in message.warnings:
        found_at_create.first_time.FromDatetime(job.create_time)
        found_at_create.last_time.FromDatetime(job.create_time)
    message.warnings.extend(map(warning, found.warnings))
    if found.queue is not None:
        told = found.queue
        message.queued_behind.running.extend(told.running)
        message.queued_behind.ahead.extend(told.ahead)
        message.queued_behind.ahead_count = told.ahead_count
        if told.retry_time:
            message.queued_behind.retry_time.FromDatetime(told.retry_time)
        message.queued_behind.SetInParent()
    for field in ("create_time", "start_time", "end_time"):
        if moment := getattr(job, field):
            getattr(message, field).FromDatetime(moment)
    return message


def job_changed(
    job: Job, attempts: list[Attempt], warnings: list[JobWarning], before: State | None
) -> training_job_changed_pb2.TrainingJobChanged:
    found = TrainingJob(job, TrainingSpec(**job.spec), attempts, warnings)
    previous = job_state(before) if before else job_state_pb2.JOB_STATE_UNSPECIFIED
    return training_job_changed_pb2.TrainingJobChanged(
        training_job=training_job(found),
        previous_state=previous,
        uses=dict.fromkeys(resource for resource, _ in inputs(found.spec)),
    )


def job_event(event: StoredEvent) -> list[trainer_service_pb2.StreamJobEventsResponse]:
    """What a stream sends for an event of a job: of a failure, why it failed before the state it led to."""
    last = event.sequence
    if event.type == checkpoint_changed_pb2.CheckpointChanged.DESCRIPTOR.full_name:
        checkpoint = event.message(checkpoint_changed_pb2.CheckpointChanged).checkpoint
        return [trainer_service_pb2.StreamJobEventsResponse(checkpoint=checkpoint, last_sequence=last)]
    if event.type == training_job_warned_pb2.TrainingJobWarned.DESCRIPTOR.full_name:
        found = event.message(training_job_warned_pb2.TrainingJobWarned).warning
        return [trainer_service_pb2.StreamJobEventsResponse(warning=found, last_sequence=last)]
    job = event.message(training_job_changed_pb2.TrainingJobChanged).training_job
    sent = [trainer_service_pb2.StreamJobEventsResponse(training_job=job, last_sequence=last)]
    if error := _job_error(job, event.create_time):
        # Who resumes between the two reads the error again rather than never its consequence.
        sent.insert(0, trainer_service_pb2.StreamJobEventsResponse(job_error=error, last_sequence=last - 1))
    return sent


def _job_error(job: training_job_pb2.TrainingJob, at: datetime) -> job_error_pb2.JobError | None:
    """Why the job failed, or why its last attempt did when that is what sent it back to the queue."""
    last = job.attempts[-1] if job.attempts else job_attempt_pb2.JobAttempt()
    if job.state == job_state_pb2.JOB_STATE_FAILED:
        info = error_details_pb2.ErrorInfo()
        remedy = next((info.metadata.get("remedy", "") for detail in job.error.details if detail.Unpack(info)), "")
        return job_error_pb2.JobError(status=job.error, remedy=remedy, attempt=last.number)
    # Both are the time of the one transaction that wrote them; an earlier attempt has another.
    ended_now = last.end_reason and last.end_time == timestamp(at)
    if job.state != job_state_pb2.JOB_STATE_QUEUED or not ended_now:
        return None
    why = status({"code": "ABORTED", "reason": "ATTEMPT_ENDED", "message": last.end_reason})
    return job_error_pb2.JobError(status=why, attempt=last.number, retried=True)


def checked_job(spec: TrainingSpec) -> training_job_pb2.TrainingJob:
    """What would be created: no name, no state."""
    resources = placement_pb2.Resources(gpu_count=spec.slots)
    return training_job_pb2.TrainingJob(
        algorithm=spec.algorithm,
        base_model=spec.base_model,
        dataset_version=spec.dataset_version,
        validation_dataset_version=spec.validation_dataset_version,
        params=to_struct(spec.params),
        placement=placement_pb2.Placement(target=spec.target, resources=resources),
        labels=spec.labels,
        inputs=training_job_pb2.JobInputs(
            base_manifest_sha256=spec.base_manifest_sha256,
            dataset_sha256=spec.dataset_sha256,
            validation_dataset_sha256=spec.validation_dataset_sha256,
            reward_models=spec.reward_models,
        ),
        disk_forecast=training_job_pb2.DiskForecast(**spec.disk_forecast) if spec.disk_forecast else None,
        data_forecast=training_job_pb2.DataForecast(**spec.data_forecast) if spec.data_forecast else None,
        warnings=map(warning, spec.warnings),
        resume_from=spec.resume_from,
    )


def warning(found: JobWarning) -> job_warning_pb2.JobWarning:
    return job_warning_pb2.JobWarning(
        reason=found.reason,
        severity=job_warning_pb2.JobWarning.Severity.Value(f"SEVERITY_{found.severity}"),
        message=found.message,
        remedy=found.remedy,
        first_step=found.first_step,
        last_step=found.last_step,
        count=found.count,
        attempt=found.attempt,
        first_time=timestamp(found.first_time),
        last_time=timestamp(found.last_time),
    )


def _attempt(attempt: Attempt) -> job_attempt_pb2.JobAttempt:
    return job_attempt_pb2.JobAttempt(
        number=attempt.number,
        start_time=timestamp(attempt.start_time),
        end_time=timestamp(attempt.end_time),
        end_reason=attempt.end_reason,
        resumed_from_step=attempt.resumed_from_step,
    )


def checkpoint(row: Checkpoint, manifest: Manifest | None = None) -> checkpoint_pb2.Checkpoint:
    return checkpoint_pb2.Checkpoint(
        name=row.name,
        kind=checkpoint_pb2.Checkpoint.Kind.Value(f"KIND_{row.kind.upper()}"),
        state=checkpoint_pb2.Checkpoint.State.Value(f"STATE_{row.state}"),
        base_model=row.base_model,
        step=row.step,
        manifest_sha256=row.manifest_sha256,
        size_bytes=row.size_bytes,
        metrics=row.metrics,
        parents=row.parents,
        create_time=timestamp(row.create_time),
        files=artifact_files(manifest.files if manifest else ()),
        training_state=checkpoint_pb2.Checkpoint.TrainingState.Value(f"TRAINING_STATE_{row.training_state}"),
        state_reason=row.state_reason,
        provenance=checkpoint_pb2.Provenance(**row.provenance) if row.provenance else None,
    )


def algorithm(name: str, entry: type[Algorithm]) -> training_job_pb2.Algorithm:
    return training_job_pb2.Algorithm(
        entry=_entry(name, entry, schema.schema(name)),
        dataset_formats=entry.dataset_formats,
        validation_formats=entry.validation_formats,
        headline_metrics=[
            training_job_pb2.HeadlineMetric(metric=one.metric, title=one.title) for one in entry.headline_metrics
        ],
    )


def reward(name: str, entry: type[Reward]) -> training_job_pb2.Reward:
    return training_job_pb2.Reward(entry=_entry(name, entry, params.schema(entry.Params)))


def _entry(name: str, entry: type[Any], params_schema: dict[str, Any]) -> registry_entry_pb2.RegistryEntry:
    return registry_entry_pb2.RegistryEntry(
        id=name,
        summary=registry.summary(entry),
        description=inspect.getdoc(entry) or "",
        params_schema=to_struct(params_schema),
    )


def scoring_sample(message: scoring_pb2.ScoringSample) -> RewardSample:
    prompt = [{"role": turn.role, "content": turn.content} for turn in message.prompt]
    answer = message.answer if message.HasField("answer") else None
    return RewardSample(prompt, message.completion, answer, struct(message.metadata))


def scoring_verdict(verdict: RewardVerdict) -> scoring_pb2.ScoringVerdict:
    error = status(verdict.error) if verdict.error else None
    return scoring_pb2.ScoringVerdict(score=verdict.score, parts=verdict.parts, error=error)


def job_state(state: State) -> job_state_pb2.JobState.ValueType:
    return job_state_pb2.JobState.Value(f"JOB_STATE_{state}")


def states(values: Any) -> list[State]:
    """States that a filter names. Raises InvalidArgument for one that no job has: left out it would find every job."""
    named = {number: name.removeprefix("JOB_STATE_") for name, number in job_state_pb2.JobState.items()}
    found = [named.get(value, "") for value in values]
    if unknown := sorted({value for value, name in zip(values, found, strict=True) if name not in State.__members__}):
        states = ", ".join(job_state_pb2.JobState.Name(job_state(state)) for state in State)
        raise InvalidArgument.of("states", f"must be of {states} (got the number {unknown[0]})")
    return [State(name) for name in found]


def artifact_files(files: tuple[ArtifactFile, ...]) -> list[checkpoint_pb2.ArtifactFile]:
    return [checkpoint_pb2.ArtifactFile(path=f.path, size_bytes=f.size_bytes, sha256=f.sha256) for f in files]
