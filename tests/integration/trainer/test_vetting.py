"""What a request makes the service check: bounded in number and in time, and by another process."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
from google.protobuf import struct_pb2
from rlhf.trainer.v1 import trainer_service_pb2 as pb
from rlhf.trainer.v1.training_job_pb2 import TrainingJob

from services.mesh.errors import InvalidArgument
from services.mesh.rpc import client
from services.trainer.training import request_limits
from tests.integration.trainer.test_runs import PARENT, VERSION, Bench, bench

__all__ = ["bench"]

# Each level looks at the next one twice: 65 thousand looks at one value.
LEVELS = 15
SLOW = {
    "$ref": "#/$defs/a0",
    "$defs": {f"a{n}": {"allOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} if n < LEVELS else {} for n in range(LEVELS + 1)},
}
PLAIN = {"type": "object", "required": ["x"]}


def of(*schemas: Any) -> dict[str, Any]:
    """A sum of a reward for each."""
    made = [{"name": "json_schema", "label": f"s{i}", "params": {"schema": s}} for i, s in enumerate(schemas)]
    return {"name": "weighted", "params": {"components": made}}


@pytest.fixture
def checked_here(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Schemas that this process has checked, whose loop serves all requests."""
    checked: list[Any] = []
    real = jsonschema.Draft202012Validator.check_schema

    def check(schema: Any, *arguments: Any, **named: Any) -> None:
        checked.append(schema)
        real(schema, *arguments, **named)

    monkeypatch.setattr(jsonschema.Draft202012Validator, "check_schema", check)
    monkeypatch.setattr(request_limits, "CPU_SECONDS", 1)
    return checked


async def violations(bench: Bench, reward: dict[str, Any]) -> dict[str, str]:
    """Those of the reward."""
    job = TrainingJob(algorithm="grpo", base_model=f"{PARENT}/models/base", dataset_version=VERSION)
    job.params.update({"reward": reward})
    request = pb.CreateTrainingJobRequest(parent=PARENT, training_job=job, validate_only=True)
    try:
        await client.call(bench.trainer.CreateTrainingJob(request))
    except InvalidArgument as error:
        return {each.field: each.description for each in error.violations if "params" in each.field}
    return {}


async def test_schemas_of_a_request_have_one_budget_in_another_process(
    bench: Bench, checked_here: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = "training_job.params.reward.params.components"
    found = await violations(bench, of(PLAIN, {"type": "thing"}, SLOW, PLAIN, {"type": "array"}))
    assert set(found) == {f"{prefix}.{index}.params.schema" for index in (1, 2, 4)}
    assert found[f"{prefix}.1.params.schema"].startswith("type: 'thing' is not valid")
    for index in (2, 4):
        assert "the schemas of a request have 1 s of a processor together" in found[f"{prefix}.{index}.params.schema"]
    monkeypatch.setattr(request_limits, "CPU_SECONDS", 60)
    assert await violations(bench, of(*[{**PLAIN, "title": str(n)} for n in range(32)])) == {}
    assert checked_here == []


async def test_rewards_of_a_request_are_counted_before_any_is_read(bench: Bench) -> None:
    inner = of(*[PLAIN] * 32)
    reward = {"name": "weighted", "params": {"components": [{**inner, "label": f"w{n}"} for n in range(3)]}}
    found = await violations(bench, reward)
    assert found == {"training_job.params": "holds 99 rewards that are components of others; 64 are the most"}


async def test_a_trial_has_the_same_budget(bench: Bench, checked_here: list[Any]) -> None:
    params = struct_pb2.Struct()
    params.update({"schema": SLOW})
    request = pb.TestRewardRequest(parent=PARENT, reward_id="json_schema", params=params)
    request.samples.add(completion="{}")
    with pytest.raises(InvalidArgument) as caught:
        await client.call(bench.trainer.TestReward(request))
    [violation] = caught.value.violations
    assert violation.field == "params.schema" and "takes too long to check" in violation.description
    assert checked_here == []
