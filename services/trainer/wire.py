"""Proto ↔ dataclass, pure, both ways."""

from __future__ import annotations

from rlhf.event.v1 import checkpoint_changed_pb2, training_job_changed_pb2, training_job_warned_pb2
from rlhf.trainer.v1 import trainer_service_pb2, training_job_pb2
from rlhf.type.v1 import checkpoint_pb2, job_state_pb2, placement_pb2, scoring_pb2

from services.mesh.artifacts import ArtifactFile, Manifest
from services.mesh.events.outbox import StoredEvent
from services.mesh.jobs import wire as job_wire
from services.mesh.jobs.resource import JobRecord
from services.mesh.jobs.store import State
from services.mesh.rpc.wellknown import registry_entry, status, struct, timestamp, to_struct
from services.mesh.validation import params
from services.rewards import Reward, RewardSample
from services.trainer.algorithms import Algorithm, schema
from services.trainer.entities import Checkpoint, NewTrainingJob, RewardVerdict, TrainingSpec
from services.trainer.training.input_references import inputs


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


def training_job(record: JobRecord[TrainingSpec]) -> training_job_pb2.TrainingJob:
    message = checked_job(record.spec)
    job_wire.fill_job(message, record)
    message.software.update(record.job.progress.get("software", {}))
    return message


def job_changed(record: JobRecord[TrainingSpec], before: State | None) -> training_job_changed_pb2.TrainingJobChanged:
    return training_job_changed_pb2.TrainingJobChanged(
        training_job=training_job(record),
        previous_state=job_wire.job_state(before) if before else job_state_pb2.JOB_STATE_UNSPECIFIED,
        uses=dict.fromkeys(resource for resource, _ in inputs(record.spec)),
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
    return job_wire.job_change(trainer_service_pb2.StreamJobEventsResponse, "training_job", job, event)


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
        warnings=map(job_wire.warning, spec.warnings),
        resume_from=spec.resume_from,
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
        entry=registry_entry(name, entry, schema.schema(name)),
        dataset_formats=entry.dataset_formats,
        validation_formats=entry.validation_formats,
        headline_metrics=[
            training_job_pb2.HeadlineMetric(metric=one.metric, title=one.title) for one in entry.headline_metrics
        ],
    )


def reward(name: str, entry: type[Reward]) -> training_job_pb2.Reward:
    return training_job_pb2.Reward(entry=registry_entry(name, entry, params.schema(entry.Params)))


def scoring_sample(message: scoring_pb2.ScoringSample) -> RewardSample:
    prompt = [{"role": turn.role, "content": turn.content} for turn in message.prompt]
    answer = message.answer if message.HasField("answer") else None
    return RewardSample(prompt, message.completion, answer, struct(message.metadata))


def scoring_verdict(verdict: RewardVerdict) -> scoring_pb2.ScoringVerdict:
    error = status(verdict.error) if verdict.error else None
    return scoring_pb2.ScoringVerdict(score=verdict.score, parts=verdict.parts, error=error)


def artifact_files(files: tuple[ArtifactFile, ...]) -> list[checkpoint_pb2.ArtifactFile]:
    return [checkpoint_pb2.ArtifactFile(path=f.path, size_bytes=f.size_bytes, sha256=f.sha256) for f in files]
