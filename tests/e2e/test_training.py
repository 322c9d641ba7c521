"""Real training by verl on Ray in a whole mesh: to the end, through deaths, stopped, resumed."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
from pathlib import Path

import pytest

from tests.fix_live import GRPO, GRPO_PARAMS, SFT, SFT_PARAMS, LiveMesh, alive, wait_until

pytestmark = pytest.mark.slow


def steps_of(mesh: LiveMesh, job: str, metric: str) -> list[int]:
    """Steps of every stored point, every attempt's."""
    text = mesh.rlhf("job", "metrics", job, "--metric", metric, "--all-attempts", "-o", "csv").stdout
    return [int(row["step"]) for row in csv.DictReader(io.StringIO(text))]


def test_sft_goes_on_while_everything_around_it_dies(live_mesh: LiveMesh) -> None:
    job = live_mesh.train("sft", *SFT, **SFT_PARAMS, steps=400, save_every_steps=200)
    live_mesh.until(job, lambda found: int(found["stepCount"]) >= 3)
    run = live_mesh.run_pid(job)
    live_mesh.kill("trainer", "trainer.worker", "nats", "postgres", "dataset", "gateway")
    assert int(live_mesh.job(job)["stepCount"]) > 0
    found = live_mesh.ended(job)
    assert found["state"] == "JOB_STATE_SUCCEEDED", found
    assert len(found["attempts"]) == 1
    assert steps_of(live_mesh, job, "train/loss") == list(range(1, 401))
    assert not alive(run)
    steps = [checkpoint["step"] for checkpoint in live_mesh.json("checkpoint", "list", job)]
    assert steps == ["400", "200"]


def test_grpo_learns_from_its_reward_and_its_checkpoint_loads(live_mesh: LiveMesh, tmp_path: Path) -> None:
    job = live_mesh.train("grpo", *GRPO, **GRPO_PARAMS, steps=3)
    found = live_mesh.ended(job)
    assert found["state"] == "JOB_STATE_SUCCEEDED", found
    for metric in ("reward/mean", "actor/entropy", "time/step_seconds", "actor/kl_to_rollout"):
        assert steps_of(live_mesh, job, metric) == [1, 2, 3], metric
    assert steps_of(live_mesh, job, "validation/score/mean") == [0, 3]
    for step in ("0", "3"):
        samples = live_mesh.json("job", "samples", job, "--split", "validation", "--step", step, "--limit", "0")
        assert len(samples) == 64, "every held-out row is answered"
    live_mesh.rlhf("checkpoint", "download", job, "--to", str(tmp_path / "model"))
    assert json.loads((tmp_path / "model" / "config.json").read_text())["model_type"] == "llama"
    assert (tmp_path / "model" / "model.safetensors").stat().st_size > 0


def test_two_rl_jobs_side_by_side_do_not_meet(live_mesh: LiveMesh) -> None:
    """One of them with a reward in Python, which runs in a process of its own under what `rlhf up` leaves to it."""
    source = "def score(samples): return [{'score': 0.5, 'parts': {'answered': 1}} for one in samples]"
    own = {"reward__name": "custom", "reward__params__source": source}
    [verdict] = live_mesh.json("reward", "test", "custom", f"--set=source={source}", "--completion", "x")["verdicts"]
    assert (verdict["score"], verdict["parts"]) == (0.5, {"answered": 1}), verdict
    jobs = [live_mesh.train("grpo", *GRPO, **GRPO_PARAMS, steps=4, seed=1, **reward) for reward in ({}, own)]
    for job in jobs:
        found = live_mesh.ended(job)
        assert found["state"] == "JOB_STATE_SUCCEEDED", found
        assert steps_of(live_mesh, job, "reward/mean") == [1, 2, 3, 4]
    assert steps_of(live_mesh, jobs[1], "reward/answered/mean") == [1, 2, 3, 4]


def test_cancel_leaves_no_process_and_no_slot_taken(live_mesh: LiveMesh) -> None:
    job = live_mesh.train("grpo", *GRPO, **GRPO_PARAMS, steps=500, epochs=100)
    live_mesh.until(job, lambda found: int(found["stepCount"]) >= 1)
    run = live_mesh.run_pid(job)
    live_mesh.rlhf("job", "cancel", job)
    found = live_mesh.ended(job)
    assert found["state"] == "JOB_STATE_CANCELLED"
    assert int(found["stepCount"]) < 500
    wait_until(lambda: not alive(run), "the run to be gone", 10)
    after = live_mesh.train("sft", *SFT, **SFT_PARAMS, steps=2)
    assert live_mesh.ended(after)["state"] == "JOB_STATE_SUCCEEDED", "its slots are free again"


def test_a_killed_run_resumes_from_its_checkpoint(live_mesh: LiveMesh) -> None:
    job = live_mesh.train("sft", *SFT, **SFT_PARAMS, steps=1000, save_every_steps=250)
    checkpoints = lambda: live_mesh.json("checkpoint", "list", job)  # noqa: E731
    wait_until(lambda: any(c["state"] == "STATE_READY" for c in checkpoints()), "a checkpoint", 300)
    os.kill(live_mesh.run_pid(job), signal.SIGKILL)
    found = live_mesh.ended(job)
    assert found["state"] == "JOB_STATE_SUCCEEDED", found
    resumed = int(found["attempts"][-1]["resumedFromStep"])
    assert len(found["attempts"]) == 2 and resumed > 0 and resumed % 250 == 0
    text = live_mesh.rlhf("job", "metrics", job, "--metric", "train/loss", "-o", "csv").stdout
    assert sorted(int(row["step"]) for row in csv.DictReader(io.StringIO(text))) == list(range(1, 1001))


@pytest.mark.parametrize(("algorithm", "inputs", "params"), [("sft", SFT, SFT_PARAMS), ("grpo", GRPO, GRPO_PARAMS)])
def test_lora_saves_an_adapter(live_mesh: LiveMesh, algorithm: str, inputs: tuple[str, ...], params: dict) -> None:
    job = live_mesh.train(algorithm, *inputs, **params, steps=2, lora__rank=4, lora__alpha=8)
    found = live_mesh.ended(job)
    assert found["state"] == "JOB_STATE_SUCCEEDED", found
    (checkpoint,) = live_mesh.json("checkpoint", "list", job)
    assert checkpoint["kind"] == "KIND_ADAPTER"
    assert checkpoint["baseModel"] == "projects/default/models/tiny"


def test_down_and_up_again_loses_nothing(live_mesh: LiveMesh) -> None:
    before = live_mesh.json("job", "list"), live_mesh.json("dataset", "list"), live_mesh.json("model", "list")
    live_mesh.rlhf("down")
    assert live_mesh.rlhf("status", check=False).returncode == 3
    live_mesh.rlhf("up")
    after = live_mesh.json("job", "list"), live_mesh.json("dataset", "list"), live_mesh.json("model", "list")
    assert after == before
    assert live_mesh.rlhf("up").returncode == 0, "a second up says that it is up"
