from __future__ import annotations

from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct

from services.cli import schemas
from services.mesh.validation import params
from services.rewards import rewards
from services.trainer.algorithms import algorithms
from services.trainer.algorithms import schema as describing


def of(kind: type) -> dict[str, schemas.Parameter]:
    """As the command sees a schema: through a protobuf Struct, which makes 64 a 64.0."""
    struct = Struct()
    struct.update(params.schema(kind))
    return {parameter.path: parameter for parameter in schemas.parameters(MessageToDict(struct))}


def test_grpo_is_drawn_with_types_ranges_and_defaults() -> None:
    found = of(algorithms.get("grpo").Params)
    rate = found["learning_rate"]
    assert (rate.type, rate.default, rate.range) == ("number", "1e-06", "> 0, ≤ 1")
    assert found["prompts_per_step"].default == "64"
    assert found["prompts_per_step"].range == "1 to 65536"
    assert found["steps"].type == "integer | null"
    assert found["kl_kind"].type == "low_var_kl | kl | abs | mse"
    assert rate.description


def test_what_is_nested_is_set_by_dots() -> None:
    found = of(algorithms.get("sft").Params)
    assert found["lora"].type == "object | null"
    assert found["lora.rank"].default == "16"
    assert found["validation.rows"].default == "64"
    assert found["reward.name"].default == '"exact"'
    assert found["lora.target_modules"].type == "string | list of string"
    # It cannot be set as a whole to anything but what its parts say.
    assert "validation" not in found


def test_what_must_be_given_comes_first_and_nested_ones_last() -> None:
    assert next(iter(of(rewards.get("regex").Params))) == "pattern"
    assert of(rewards.get("regex").Params)["pattern"].default == schemas.REQUIRED
    paths = list(of(algorithms.get("grpo").Params))
    assert paths == sorted(paths, key=lambda path: (path.count("."), path))


def test_settings_of_verl_are_no_parameters_of_the_table_but_a_list_of_their_own() -> None:
    struct = Struct()
    struct.update(describing.schema("ppo"))
    schema = MessageToDict(struct)
    paths = {parameter.path for parameter in schemas.parameters(schema)}
    assert "verl_overrides" in paths and not any(path.startswith("verl_overrides.") for path in paths)
    found = schemas.collection(schema, "verl_overrides")
    assert found["actor_rollout_ref.rollout.gpu_memory_utilization"] == {"type": "number", "default": 0.5}
    assert found["critic.ppo_epochs"] == {"type": "integer", "default": 1}
    assert list(found) == sorted(found)
    (one,) = schemas.parameters({"properties": {"a": found["algorithm.rollout_correction.rollout_is"]}})
    assert (one.type, one.default) == ("token | sequence | null", "null")


def test_every_parameter_of_every_entry_is_drawn() -> None:
    for registry in (algorithms, rewards):
        for _, entry in registry.items():
            top = {path.partition(".")[0] for path in of(entry.Params)}
            assert top == set(params.schema(entry.Params)["properties"])
