"""From comparisons of answers to a model that prefers, and to one that judges: in a whole mesh, by its commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fix_live import LiveMesh

pytestmark = pytest.mark.slow
PARAMS = {"batch_size": 16, "max_length": 32, "learning_rate": 1e-2, "steps": 6}


def pair(question: str) -> dict[str, str]:
    digits = "".join(sorted(question))
    return {"prompt": question, "chosen": digits, "rejected": digits[::-1]}


@pytest.fixture(scope="module")
def comparisons(live_mesh: LiveMesh, tmp_path_factory: pytest.TempPathFactory) -> str:
    """128 pairs, spelt as TRL spells them. Sorted digits against the same backwards, so not all alike."""
    questions = [f"{(7919 * index) % 10_000:04d}" for index in range(200)]
    rows = [pair(question) for question in questions if len(set(question)) > 1][:128]
    path = tmp_path_factory.mktemp("comparisons") / "comparisons.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    live_mesh.rlhf("dataset", "upload", str(path), "--name", "comparisons", "--format", "preference")
    return "comparisons"


@pytest.fixture(scope="module")
def judge(live_mesh: LiveMesh, comparisons: str) -> str:
    """The job that has made a reward model."""
    data = ("--model", "tiny", "--dataset", comparisons, "--validation", comparisons)
    job = live_mesh.train("reward_model", *data, **PARAMS)
    found = live_mesh.ended(job)
    assert found["state"] == "JOB_STATE_SUCCEEDED", found
    return job


def test_a_reward_model_judges_and_starts_the_critic(live_mesh: LiveMesh, judge: str) -> None:
    params = {
        "reward__name": "model", "reward__params__model": judge, "critic__model": judge, "steps": 2,
        "prompts_per_step": 8, "max_prompt_length": 16, "max_response_length": 8, "kl_coefficient": 0.05,
    }  # fmt: skip
    job = live_mesh.train("ppo", "--model", "tiny", "--dataset", "prompts", **params)
    found = live_mesh.ended(job)
    assert found["state"] == "JOB_STATE_SUCCEEDED", found
    [made] = live_mesh.json("checkpoint", "list", judge)
    assert found["inputs"]["rewardModels"] == {made["name"]: made["manifestSha256"]}
    assert found["params"]["critic"]["model"] == made["name"]
    [checkpoint] = live_mesh.json("checkpoint", "list", job)
    assert checkpoint["provenance"]["rewardModels"] == found["inputs"]["rewardModels"]
    assert made["manifestSha256"][:12] in live_mesh.rlhf("checkpoint", "show", job).stdout
    dry = live_mesh.rlhf("job", "replay", job, "--dry-run")
    assert "nothing was started" in dry.stdout + dry.stderr
    plain = live_mesh.train("ppo", "--model", "tiny", "--dataset", "prompts", **{**params, "critic__model": None})
    live_mesh.rlhf("job", "cancel", plain)
    differs = live_mesh.json("job", "diff", job, plain)
    assert "params.critic.model" in [item["field"] for item in differs["config"]]
    refused = live_mesh.rlhf(
        "train",
        "ppo",
        "--model",
        "tiny",
        "--dataset",
        "prompts",
        "--set",
        "critic.model=tiny",
        "--dry-run",
        check=False,
    )
    assert refused.returncode and "--set critic.model" in refused.stdout + refused.stderr
    assert "is a language model, which gives no scores" in " ".join((refused.stdout + refused.stderr).split())


def test_a_reward_model_is_no_language_model(live_mesh: LiveMesh, judge: str, tmp_path: Path) -> None:
    job = judge
    [checkpoint] = live_mesh.json("checkpoint", "list", job)
    assert (checkpoint["kind"], checkpoint["state"]) == ("KIND_REWARD", "STATE_READY")
    assert checkpoint["metrics"]["validation/accuracy"] > 0.9
    said = live_mesh.rlhf("checkpoint", "download", job, "--to", str(tmp_path / "judge"))
    assert "AutoModelForSequenceClassification" in said.stdout + said.stderr
    config = json.loads((tmp_path / "judge" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]

    refused = live_mesh.rlhf("train", "sft", "--model", job, "--dataset", "examples", check=False)
    assert refused.returncode and "is a reward model" in refused.stdout + refused.stderr


def test_preferences_are_learnt(live_mesh: LiveMesh, comparisons: str) -> None:
    refused = live_mesh.rlhf(
        "train", "dpo", "--model", "tiny", "--dataset", comparisons, "--set", "gamma=1", "--set", "max_length=4096",
        "--dry-run", check=False,
    )  # fmt: skip
    assert refused.returncode and "gamma" in refused.stdout + refused.stderr
    job = live_mesh.train("dpo", "--model", "tiny", "--dataset", comparisons, "--validation", "held-out", **PARAMS)
    found = live_mesh.ended(job)
    assert found["state"] == "JOB_STATE_SUCCEEDED", found
    [last] = live_mesh.json("job", "metrics", job, "--metric", "rewards/accuracy")[-1:]
    assert last["step"] in (6, "6") and last["value"] > 0.9
    [checkpoint] = live_mesh.json("checkpoint", "list", job)
    assert (checkpoint["kind"], checkpoint["state"]) == ("KIND_FULL", "STATE_READY")
