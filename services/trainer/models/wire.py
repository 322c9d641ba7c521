"""Models, proto ↔ dataclass, pure, both ways."""

from __future__ import annotations

from typing import Any

from rlhf.trainer.v1 import model_pb2, trainer_service_pb2
from rlhf.type.v1 import model_layer_pb2

from services.mesh.artifacts import ArtifactFile
from services.mesh.rpc.wellknown import status, struct, timestamp, to_struct
from services.models.kinds import is_reward_model
from services.trainer.entities import BaseModel, Model, NewModel
from services.trainer.wire import artifact_files


def new_model(request: trainer_service_pb2.ImportModelRequest) -> NewModel:
    model = request.model
    return NewModel(request.parent, request.model_id, model.display_name, _source(model.source), dict(model.labels))


def _source(source: model_pb2.ModelSource) -> dict[str, Any]:
    kind = source.WhichOneof("source")
    if kind != "init":
        return {kind: getattr(source, kind)} if kind else {}
    init: dict[str, Any] = {"config": struct(source.init.config), "seed": source.init.seed}
    if source.init.WhichOneof("tokenizer") == "characters":
        init["characters"] = source.init.characters.alphabet
    elif source.init.WhichOneof("tokenizer"):
        init["tokenizer_model"] = source.init.tokenizer_model
    return {"init": init}


def model(row: Model, files: tuple[ArtifactFile, ...] = ()) -> model_pb2.Model:
    return model_pb2.Model(
        name=row.name,
        display_name=row.display_name,
        state=model_pb2.Model.State.Value(f"STATE_{row.state}"),
        source=_source_message(row.source),
        architecture=row.architecture,
        parameter_count=row.parameter_count,
        context_length=row.context_length,
        vocabulary_size=row.vocabulary_size,
        manifest_sha256=row.manifest_sha256,
        size_bytes=row.size_bytes,
        files=artifact_files(files),
        error=status(row.error) if row.error else None,
        create_time=timestamp(row.create_time),
        labels=row.labels,
        parents=row.parents,
        kind=_model_kind(row.architecture),
    )


def _model_kind(architecture: str) -> model_pb2.Model.Kind.ValueType:
    return _kind(is_reward_model([architecture])) if architecture else model_pb2.Model.KIND_UNSPECIFIED


def _kind(scores: bool) -> model_pb2.Model.Kind.ValueType:
    return model_pb2.Model.KIND_REWARD_MODEL if scores else model_pb2.Model.KIND_LANGUAGE_MODEL


def resolved_model(base: BaseModel) -> trainer_service_pb2.ResolveModelResponse:
    return trainer_service_pb2.ResolveModelResponse(
        layers=[
            model_layer_pb2.ModelLayer(name=each.name, manifest_sha256=each.manifest_sha256) for each in base.layers
        ],
        kind=_kind(base.scores),
        parameter_count=base.parameter_count,
        context_length=base.context_length,
    )


def _source_message(source: dict[str, Any]) -> model_pb2.ModelSource:
    if "init" not in source:
        return model_pb2.ModelSource(**source)
    init = source["init"]
    message = model_pb2.ModelInit(config=to_struct(init["config"]), seed=init["seed"])
    if "characters" in init:
        message.characters.alphabet = init["characters"]
    else:
        message.tokenizer_model = init["tokenizer_model"]
    return model_pb2.ModelSource(init=message)
