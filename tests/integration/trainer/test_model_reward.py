"""A reward model as a reward: its own numbers, found by reference, tried in a process of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import struct_pb2
from rlhf.trainer.v1 import model_pb2, trainer_service_pb2
from rlhf.trainer.v1.trainer_service_pb2_grpc import TrainerServiceStub
from rlhf.type.v1.chat_turn_pb2 import ChatTurn
from rlhf.type.v1.scoring_pb2 import ScoringSample

from services import rewards
from services.mesh.errors import InvalidArgument
from services.mesh.rpc import client
from services.rewards import RewardContext, RewardError, RewardSample
from services.rewards.spec import RewardSite
from services.trainer.entities import BaseModel, DatasetVersion, NewTrainingJob, TrainingSpec
from services.trainer.training import checks
from tests.fix_look_up import NoTrainingStates
from tests.fix_reward_model import tiny_model as tiny_model
from tests.fix_reward_model import tiny_reward_model as tiny_reward_model
from tests.fix_runner import ENVIRONMENT
from tests.integration.trainer.test_service import PARENT, imported, init_request
from tests.integration.trainer.test_service import trainer as trainer

REFERENCE = f"{PARENT}/models/judge"
QUESTION = [{"role": "user", "content": "31"}]
SAMPLES = [RewardSample(QUESTION, text, None) for text in ("13", "31", "777777777", "")]
# What transformers says when it is asked without us.
PLAIN = """
import json, sys, torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
folder, question, *texts = sys.argv[1:]
model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
found = []
for text in texts:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": text}]
    tokens = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
    with torch.no_grad():
        found.append(model(input_ids=torch.tensor([tokens])).logits[0, 0].item())
print(json.dumps(found))
"""


class Fixed:
    """A scorer that gives what a test wants."""

    def __init__(self, outputs: Sequence[float]) -> None:
        self.outputs = list(outputs)

    def score(self, samples: Sequence[RewardSample]) -> list[float]:
        return self.outputs

    def close(self) -> None:
        pass


def judged(outputs: Sequence[float], **params: Any) -> list[rewards.Score]:
    surroundings = RewardContext(RewardSite(models={"m": "folder"}), load_model=lambda folder: Fixed(outputs))
    with rewards.opened("model", {"model": "m", **params}, surroundings) as judge:
        return judge.score(SAMPLES[:2])


def test_shift_scale_and_clip() -> None:
    assert [one.score for one in judged([3, -5], shift=1, scale=2)] == [1, -3]
    assert [one.score for one in judged([3, -5], clip=2)] == [2, -2]
    assert judged([3, -5], clip=2)[1].parts == {"output": -5}
    with pytest.raises(RewardError, match=r"reward 'model', sample 1 \('31'\): the model's output is nan"):
        judged([0, float("nan")])
    with pytest.raises(RewardError, match="gave 1 scores"):
        judged([0])
    with pytest.raises(RewardError, match="not at hand"), rewards.opened("model", {"model": "other"}):
        pass


def test_in_a_sum_its_reference_is_found() -> None:
    inner = {"components": [{"name": "exact"}, {"name": "model", "params": {"model": REFERENCE}}]}
    outer = {"components": [{"name": "weighted", "params": inner}]}
    assert rewards.models("weighted", outer) == {"components.0.params.components.1.params.model": REFERENCE}


def trial(folder: Path, samples: Sequence[RewardSample]) -> dict[str, Any]:
    asked = {
        "name": "model",
        "params": {"model": "m"},
        "site": {"models": {"m": str(folder)}},
        "samples": [{"prompt": one.prompt, "completion": one.completion} for one in samples],
    }
    command = [sys.executable, "-m", "services.trainer.verifier", "reward"]
    done = subprocess.run(command, input=json.dumps(asked).encode(), env=ENVIRONMENT, capture_output=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("padding", ["as it is", "another than the tokenizer's", "none"])
def test_scores_are_those_of_transformers_whatever_stands_beside(
    tiny_reward_model: Path, tmp_path: Path, padding: str
) -> None:
    """One by one without padding, and as one batch of rows of unlike length."""
    if padding != "as it is":
        tiny_reward_model = Path(shutil.copytree(tiny_reward_model, tmp_path / "model"))
        config = json.loads((tiny_reward_model / "config.json").read_text())
        other = (config["pad_token_id"] or 0) + 1
        (tiny_reward_model / "config.json").write_text(
            json.dumps(config | {"pad_token_id": None if padding == "none" else other})
        )
    texts = [sample.completion for sample in SAMPLES]
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, str(tiny_reward_model), "31", *texts],
        env=ENVIRONMENT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = trial(tiny_reward_model, SAMPLES)
    assert found["error"] is None
    scores = [verdict["score"] for verdict in found["verdicts"]]
    assert scores == pytest.approx(json.loads(done.stdout), abs=1e-5)
    assert len(set(scores)) == len(scores)


def test_what_the_model_can_not_take_in_is_not_cut_short(tiny_reward_model: Path) -> None:
    found = trial(tiny_reward_model, [RewardSample(QUESTION, "1", None), RewardSample(QUESTION, "1" * 40, None)])
    fits, too_long = found["verdicts"]
    assert fits["error"] is None
    assert "tokens, and the reward model takes 1 to 32" in too_long["error"]["message"]


def test_a_folder_that_is_none_says_so(tiny_model: Path, tmp_path: Path) -> None:
    found = trial(tiny_model, SAMPLES)
    assert found["error"]["reason"] == "REWARD_MODEL_UNUSABLE" and "score.weight" in found["error"]["message"]
    assert trial(tmp_path / "none", SAMPLES)["error"]["reason"] == "REWARD_MODEL_UNUSABLE"


@pytest.fixture
async def with_models(trainer: TrainerServiceStub, home: Path, tiny_reward_model: Path) -> AsyncIterator[Any]:
    """A mesh with a reward model and a language model."""
    shutil.copytree(tiny_reward_model, home / "roots" / "judge")
    source = model_pb2.ModelSource(path=str(home / "roots" / "judge"))
    judge = model_pb2.Model(source=source)
    request = trainer_service_pb2.ImportModelRequest(parent=PARENT, model_id="judge", model=judge)
    await client.call(trainer.ImportModel(request))
    await client.call(trainer.ImportModel(init_request("writer")))
    for name in ("judge", "writer"):
        model = await imported(trainer, f"{PARENT}/models/{name}")
        assert model.state == model_pb2.Model.STATE_READY, model.error
    yield trainer


async def tried(trainer: TrainerServiceStub, model: str) -> trainer_service_pb2.TestRewardResponse:
    params = struct_pb2.Struct()
    params.update({"model": model})
    samples = [
        ScoringSample(prompt=[ChatTurn(role="user", content="31")], completion=one.completion) for one in SAMPLES
    ]
    request = trainer_service_pb2.TestRewardRequest(parent=PARENT, reward_id="model", params=params, samples=samples)
    return await client.call(trainer.TestReward(request, timeout=120))


async def test_it_is_tried_by_its_reference(with_models: TrainerServiceStub, tiny_reward_model: Path) -> None:
    found = await tried(with_models, REFERENCE)
    direct = trial(tiny_reward_model, SAMPLES)["verdicts"]
    assert [verdict.score for verdict in found.verdicts] == pytest.approx([one["score"] for one in direct])
    model = await client.call(with_models.GetModel(trainer_service_pb2.GetModelRequest(name=REFERENCE)))
    assert model.architecture == "LlamaForSequenceClassification"
    for wrong, says in (
        (f"{PARENT}/models/writer", "is a language model, which gives no scores"),
        (f"{PARENT}/models/none", "there is no"),
        (f"{PARENT}/trainingJobs/j/checkpoints/step-1", "there is no"),
        ("judge", "must be of the form"),
    ):
        with pytest.raises(InvalidArgument, match=says) as caught:
            await tried(with_models, wrong)
        assert [violation.field for violation in caught.value.violations] == ["params.model"]


class LookUp(NoTrainingStates):
    """What there is: the dataset, the base, one reward model."""

    async def dataset_version(self, name: str) -> DatasetVersion:
        return DatasetVersion(name, "prompt", 64, 1000, 64)

    async def base_model(self, reference: str) -> BaseModel:
        return BaseModel(reference, "0" * 64, 1000, 2048)

    async def reward_model(self, reference: str) -> BaseModel:
        if reference != REFERENCE:
            raise InvalidArgument.of("base_model", f"{reference} is a language model")
        return BaseModel(reference, "1" * 64, 1000, 32)

    async def files(self, model: BaseModel, paths: tuple[str, ...]) -> dict[str, bytes]:
        return {}


async def check_job(**params: Any) -> TrainingSpec:
    new = NewTrainingJob(
        PARENT, "", "grpo", f"{PARENT}/models/base", f"{PARENT}/datasets/d/versions/1", "",
        {"prompts_per_step": 8, **params}, "", 0, 0,
    )  # fmt: skip
    return await checks.check(new, checks.Capacity("cpu", 1), LookUp())


def model_reward(reference: str) -> dict[str, Any]:
    return {"name": "model", "params": {"model": reference}}


async def test_a_job_keeps_the_models_of_its_rewards_by_their_hash() -> None:
    components = [{"name": "exact"}, model_reward(REFERENCE)]
    spec = await check_job(reward={"name": "weighted", "params": {"components": components}})
    assert spec.reward_models == {REFERENCE: "1" * 64}
    spec = await check_job(held_out_reward=model_reward(REFERENCE))
    assert spec.reward_models == {REFERENCE: "1" * 64}
    assert (await check_job()).reward_models == {}


async def test_every_reference_that_is_none_is_named_by_its_field() -> None:
    writer = f"{PARENT}/models/writer"
    components = [{"name": "exact"}, model_reward(writer)]
    with pytest.raises(InvalidArgument) as caught:
        await check_job(
            reward={"name": "weighted", "params": {"components": components}},
            held_out_reward=model_reward("judge"),
        )
    assert {violation.field for violation in caught.value.violations} == {
        "training_job.params.reward.params.components.1.params.model",
        "training_job.params.held_out_reward.params.model",
    }
    with pytest.raises(InvalidArgument) as caught:
        await check_job(held_out_reward={"name": "regex", "params": {"pattern": "("}})
    assert [violation.field for violation in caught.value.violations] == [
        "training_job.params.held_out_reward.params.pattern"
    ]
