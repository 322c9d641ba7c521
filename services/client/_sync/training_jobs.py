"""Training jobs, from queued to ended, and what they report."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from rlhf.trainer.v1 import trainer_service_pb2 as rpc
from rlhf.trainer.v1.model_pb2 import Model
from rlhf.trainer.v1.training_job_pb2 import TrainingJob
from rlhf.type.v1.checkpoint_pb2 import Checkpoint

from services.client import references
from services.client._sync.checkpoints import Checkpoints
from services.client._sync.jobs import JobMessages, Jobs
from services.client.reference_errors import Meant
from services.mesh import names
from services.mesh.errors import InvalidArgument, NotFound


class TrainingJobs(Jobs[TrainingJob, rpc.StreamJobEventsResponse]):
    """Of a job, `events` tell states, checkpoints, errors and warnings; its checkpoints stay when it is cancelled, and
    go with it when it is deleted, which is refused unless forced while something uses one of them."""

    kind = JobMessages("TrainingJob", names.TRAINING_JOB, rpc, TrainingJob)

    def create(
        self,
        algorithm: str,
        *,
        model: str,
        dataset: str,
        validation: str = "",
        params: Mapping[str, Any] | None = None,
        name: str = "",
        priority: int = 0,
        gpus: int = 0,
        labels: Mapping[str, str] | None = None,
        validate_only: bool = False,
    ) -> TrainingJob:
        """Everything is checked first: InvalidArgument holds every violation. A `name` is made up where it is empty.

        `model` is a model, a checkpoint (`job/step-100`) or a job, for its last one; `dataset` and `validation` are
        versions (`digits:3`) or datasets, for their newest; the `model` of a reward or a critic is named as `model`
        is. Raises NotFound, AlreadyExists.
        """
        meant = Meant()
        described = self._described(meant, algorithm, model, dataset, validation, params or {})
        described.priority, described.placement.resources.gpu_count = priority, gpus
        described.labels.update(labels or {})
        try:
            made = self.submit(described, name, validate_only=validate_only or bool(meant.wrong))
        except InvalidArgument as error:
            raise meant.error(error) from None
        if meant.wrong:
            raise meant.error(None)
        return made

    def describe(
        self, algorithm: str, model: str, dataset: str, validation: str, params: Mapping[str, Any]
    ) -> TrainingJob:
        """The job that short names and parameters mean, made nowhere yet. Raises InvalidArgument, NotFound."""
        meant = Meant()
        job = self._described(meant, algorithm, model, dataset, validation, params)
        if meant.wrong:
            raise meant.error(None)
        return job

    def _described(
        self, meant: Meant, algorithm: str, model: str, dataset: str, validation: str, params: Mapping[str, Any]
    ) -> TrainingJob:
        job = TrainingJob(algorithm=algorithm)
        job.base_model = self._model_meant(meant, model, "base_model")
        with meant.field("dataset_version"):
            job.dataset_version = references.dataset_version(self._project, dataset, "dataset")
        with meant.field("validation_dataset_version"):
            if validation:
                version = references.dataset_version(self._project, validation, "validation_dataset")
                job.validation_dataset_version = version
        job.params.update(self._with_full_models(meant, params))
        return job

    def _model_meant(self, meant: Meant, text: str, field: str) -> str:
        """Like `base_model`; what is none stays as it was written."""
        with meant.field(field):
            return self.base_model(text, field)
        return text

    def submit(self, job: TrainingJob, name: str = "", *, validate_only: bool = False) -> TrainingJob:
        """Create what `job` describes."""
        parent, id_ = self._project, name or references.new_id(job.algorithm)
        if names.match(names.TRAINING_JOB, id_) is not None:
            parent, _, id_ = id_.partition("/trainingJobs/")
        request = rpc.CreateTrainingJobRequest(
            parent=parent,
            training_job=job,
            training_job_id=id_,
            request_id=str(uuid.uuid4()),
            validate_only=validate_only,
        )
        return self._calls.call("CreateTrainingJob", request, TrainingJob)

    def replay(self, name: str, new_name: str = "", *, validate_only: bool = False) -> TrainingJob:
        """Create the same job once more, from what it was made from: weights, rows, parameters and seed.

        Raises InvalidArgument where one of them is gone or has changed, NotFound.
        """
        return self.submit(_same(self.get(name)), new_name, validate_only=validate_only)

    def resume(
        self, name: str, new_name: str = "", *, params: Mapping[str, Any] | None = None, validate_only: bool = False
    ) -> TrainingJob:
        """Create a job that goes on where `name` (`job/step-100`, or `job` for its newest training state) was cancelled
        or failed, with its optimizer. `params` may change steps, epochs, save_every_steps, checkpoints, validation.

        Raises InvalidArgument where something it was made from is gone or has changed, NotFound.
        """
        job, checkpoint = references.checkpoint(self._project, name, "name")
        again = _same(self.get(job))
        again.params.update(params or {})
        again.resume_from = checkpoint or self._resumable(job)
        return self.submit(again, new_name, validate_only=validate_only)

    def _resumable(self, job: str) -> str:
        for found in Checkpoints(self._calls, self._project).list(job):
            if found.training_state == Checkpoint.TRAINING_STATE_KEPT and found.state != Checkpoint.STATE_VERIFYING:
                return found.name
        short = references.short(job)
        raise NotFound("NO_TRAINING_STATE", f"{short} has no training state that is kept; train on from its weights")

    def base_model(self, text: str, field: str = "model") -> str:
        """The full name of what `tiny` (a model, else a job's last checkpoint) or `job/step-100` means. Raises
        NotFound."""
        job, checkpoint = None, None
        if text.count("/") == 1 or "/trainingJobs/" in text:
            job, checkpoint = references.checkpoint(self._project, text, field)
        if checkpoint is not None:
            return checkpoint
        if job is None:
            name = references.model(self._project, text, field)
            try:
                return (self._calls.call("GetModel", rpc.GetModelRequest(name=name), Model)).name
            except NotFound:
                if name == text:
                    raise
            job = references.job(self._project, text, field)
        try:
            return (Checkpoints(self._calls, self._project).last_ready(job)).name
        except NotFound as error:
            if error.reason == "NO_CHECKPOINT":
                raise
            raise NotFound("MODEL_NOT_FOUND", f"there is no model and no job {text!r}", name=text) from None

    def reward_params(self, reward: str, params: Mapping[str, Any], field: str = "params") -> dict[str, Any]:
        """Params of a reward, with the full names of the models that it loads. What has not the form of such params
        stays as it is, for the mesh to refuse. Raises InvalidArgument under `field`, NotFound."""
        meant = Meant()
        full = self._reward_params(meant, reward, params, field)
        if meant.wrong:
            raise meant.error(None)
        return full

    def _reward_params(self, meant: Meant, reward: str, params: Mapping[str, Any], field: str) -> dict[str, Any]:
        full, components = dict(params), params.get("components")
        if reward == "model" and isinstance(params.get("model"), str):
            full["model"] = self._model_meant(meant, params["model"], f"{field}.model")
        if reward == "weighted" and isinstance(components, list):
            full["components"] = [
                self._full_reward(meant, one, f"{field}.components.{index}") for index, one in enumerate(components)
            ]
        return full

    def _with_full_models(self, meant: Meant, params: Mapping[str, Any]) -> dict[str, Any]:
        full, critic = dict(params), params.get("critic")
        if isinstance(critic, Mapping) and isinstance(critic.get("model"), str):
            named = self._model_meant(meant, critic["model"], "params.critic.model")
            full["critic"] = {**critic, "model": named}
        for field in ("reward", "held_out_reward"):
            if field in full:
                full[field] = self._full_reward(meant, full[field], f"params.{field}")
        return full

    def _full_reward(self, meant: Meant, reward: Any, field: str) -> Any:
        if not isinstance(reward, Mapping) or not isinstance(reward.get("params"), Mapping):
            return reward
        full = self._reward_params(meant, str(reward.get("name")), reward["params"], f"{field}.params")
        return {**reward, "params": full}


def _same(made: TrainingJob) -> TrainingJob:
    """What a job was made from, to be made once more."""
    return TrainingJob(
        algorithm=made.algorithm,
        base_model=made.base_model,
        dataset_version=made.dataset_version,
        validation_dataset_version=made.validation_dataset_version,
        params=made.params,
        placement=made.placement,
        priority=made.priority,
        labels=made.labels,
        inputs=made.inputs,
        resume_from=made.resume_from,
    )
