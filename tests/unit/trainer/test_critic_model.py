"""A critic that starts from a reward model: what is checked when the job is created, and what is kept of it."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import pytest

from services.mesh.errors import InvalidArgument
from services.models import tokenizer_compat
from services.rewards.spec import RewardSite
from services.trainer.entities import BaseModel, DatasetVersion, NewTrainingJob, TrainingSpec
from services.trainer.training import checks
from tests.fix_look_up import NoTrainingStates
from tests.unit.trainer.test_algorithms import plan

PARENT = "projects/p"
BASE, JUDGE, STRANGER = (f"{PARENT}/models/{name}" for name in ("base", "judge", "stranger"))
LETTERS = {"a": 0, "b": 1, "c": 2}


def tokenizer(vocab: Any, *added: tuple[int, str]) -> bytes:
    tokens = [{"id": number, "content": text} for number, text in added]
    return json.dumps({"model": {"vocab": vocab}, "added_tokens": tokens}).encode()


class LookUp(NoTrainingStates):
    """A language model, a reward model of its vocabulary, and one of another."""

    vocabularies: ClassVar[dict[str, bytes]] = {
        BASE: tokenizer(LETTERS, (3, "<end>")),
        JUDGE: tokenizer(LETTERS, (3, "<end>")),
        STRANGER: tokenizer({"b": 0, "a": 1, "c": 2}, (3, "<end>")),
    }

    async def dataset_version(self, name: str) -> DatasetVersion:
        return DatasetVersion(name, "prompt", 64, 1000, 64)

    async def base_model(self, reference: str) -> BaseModel:
        return BaseModel(reference, "0" * 64, 1000, 2048)

    async def reward_model(self, reference: str) -> BaseModel:
        if reference == BASE:
            raise InvalidArgument.of("base_model", f"{reference} is a language model, which gives no scores")
        return BaseModel(reference, "1" * 64, 5000, 1024)

    async def files(self, model: BaseModel, paths: tuple[str, ...]) -> dict[str, bytes]:
        return {"tokenizer.json": self.vocabularies[model.name]}


async def check_job(inputs: dict[str, str] | None = None, **params: Any) -> TrainingSpec:
    new = NewTrainingJob(
        PARENT, "", "ppo", BASE, f"{PARENT}/datasets/d/versions/1", "", {"prompts_per_step": 8, **params},
        "", 0, 0, reward_model_inputs=inputs or {},
    )  # fmt: skip
    return await checks.check(new, checks.Capacity("cpu", 1), LookUp())


async def refused(**params: Any) -> dict[str, str]:
    with pytest.raises(InvalidArgument) as caught:
        await check_job(**params)
    return {violation.field: violation.description for violation in caught.value.violations}


async def test_the_job_keeps_its_hash_and_starts_the_critic_from_it() -> None:
    spec = await check_job(critic={"model": JUDGE})
    assert spec.reward_models == {JUDGE: "1" * 64} and spec.params["critic"]["model"] == JUDGE
    made = plan("ppo", {"critic": {"model": JUDGE}}, reward_site=RewardSite(models={JUDGE: "/judge"}))
    assert made.verl["critic.model.path"] == "/judge"
    assert made.verl["actor_rollout_ref.model.path"] == "/m" == plan("ppo", {}).verl["critic.model.path"]
    # Its state is foreseen by its own size: 12 bytes of each parameter, beside the policy's.
    forecast = spec.disk_forecast
    assert forecast is not None and forecast["training_state_bytes"] == 12 * (1000 + 5000)


async def test_what_is_no_such_model_is_named_by_its_field() -> None:
    field = "training_job.params.critic.model"
    assert "language model, which gives no scores" in (await refused(critic={"model": BASE}))[field]
    other = await refused(critic={"model": STRANGER})
    assert f"another vocabulary than {BASE} (2 tokens differ, such as 0: 'a' and 'b')" in other[field]
    lengths = {"max_prompt_length": 1000, "max_response_length": 500}
    assert "takes 1024 tokens, and" in (await refused(critic={"model": JUDGE}, **lengths))[field]


async def test_another_model_of_the_name_is_refused_when_the_job_is_made_again() -> None:
    assert await check_job({JUDGE: "1" * 64}, critic={"model": JUDGE})
    reward = {"name": "model", "params": {"model": JUDGE}}
    for params in ({"critic": {"model": JUDGE}}, {"reward": reward}, {"held_out_reward": reward}):
        found = await refused(inputs={JUDGE: "2" * 64}, **params)
        assert list(found) == [f"training_job.inputs.reward_models.{JUDGE}"]
        assert "what had this name then is gone" in found[f"training_job.inputs.reward_models.{JUDGE}"]


def test_vocabularies_are_the_same_where_every_number_has_the_same_text() -> None:
    known = {"tokenizer.json": tokenizer(LETTERS)}
    # A token of the model and one that was added are the same; so is a list with probabilities.
    assert tokenizer_compat.differs(known, {"tokenizer.json": tokenizer({"a": 0, "b": 1}, (2, "c"))}) == ""
    assert tokenizer_compat.differs(known, {"tokenizer.json": tokenizer([["a", -1], ["b", -2], ["c", -3]])}) == ""
    assert "such as 3: none and 'd'" in tokenizer_compat.differs(
        known, {"tokenizer.json": tokenizer({**LETTERS, "d": 3})}
    )
    # Without the file only sizes can be compared.
    sized = known | {"config.json": b'{"vocab_size": 3}'}
    assert tokenizer_compat.differs(sized, {"config.json": b'{"vocab_size": 3}'}) == ""
    assert tokenizer_compat.differs(sized, {"config.json": b'{"vocab_size": 4}'}) == "3 tokens and 4"
