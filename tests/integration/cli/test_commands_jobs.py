"""Jobs and checkpoints by command."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import re
import signal
from pathlib import Path

import pytest
from google.protobuf.json_format import MessageToDict
from rlhf.trainer.v1 import model_pb2
from rlhf.type.v1 import job_state_pb2

from tests.integration.cli.fake_mesh import FakeMesh
from tests.integration.cli.fake_trainer import WEIGHTS

JOBS = "projects/default/trainingJobs"


@pytest.fixture
def mesh(fake_mesh: FakeMesh) -> FakeMesh:
    """With a model that is ready."""
    name = "projects/default/models/tiny"
    fake_mesh.trainer.models[name] = model_pb2.Model(name=name, state=model_pb2.Model.STATE_READY)
    return fake_mesh


def train(algorithm: str, *more: str, model: str = "tiny", dataset: str = "digits:2") -> tuple[str, ...]:
    sizes = ("--set", "steps=10", "--set", "validation.rows=4")
    return ("train", algorithm, "--model", model, "--dataset", dataset, *sizes, *more)


async def test_a_job_is_created_as_the_flags_say(mesh: FakeMesh, tmp_path: Path) -> None:
    file = tmp_path / "params.toml"
    file.write_text("seed = 1\nlearning_rate = 0.5\n")
    done = await mesh.rlhf(
        *train("grpo", "--validation", "held-out", "--set-file", str(file), "--set", "learning_rate=1e-3"),
        *("--name", "mine", "--priority", "5", "--label", "a=b", "--gpus", "2", "-o", "name"),
    )
    assert done.out == f"{JOBS}/mine\n"
    job = mesh.trainer.running[f"{JOBS}/mine"].job
    assert (job.algorithm, job.base_model) == ("grpo", "projects/default/models/tiny")
    assert job.dataset_version == "projects/default/datasets/digits/versions/2"
    assert job.validation_dataset_version == "projects/default/datasets/held-out/versions/latest"
    assert (job.priority, dict(job.labels), job.placement.resources.gpu_count) == (5, {"a": "b"}, 2)
    assert (job.params["learning_rate"], job.params["seed"]) == (1e-3, 1)
    assert "rlhf job watch mine" in done.err


async def test_a_job_without_a_name_gets_a_short_one(mesh: FakeMesh) -> None:
    names = [(await mesh.rlhf(*train("sft", "-o", "name"))).out.strip() for _ in range(2)]
    assert names[0] != names[1]
    assert all(re.fullmatch(rf"{JOBS}/sft-[0-9a-z]{{6}}", name) for name in names)


async def test_everything_wrong_is_told_by_its_flag(mesh: FakeMesh) -> None:
    done = await mesh.rlhf(*train("sft", "--set", "learning_rate=3", "--set", "lora.rnk=1"), check=2)
    lines = done.err.splitlines()
    assert lines[0] == "error: 2 things to change"
    assert {line.split()[1] for line in lines[1:]} == {"learning_rate", "lora.rnk"}
    assert re.search("one of .*grpo,.* sft", (await mesh.rlhf(*train("nonsense"), check=2)).err)
    assert mesh.trainer.running == {}


async def test_a_dry_run_checks_and_starts_nothing(mesh: FakeMesh) -> None:
    done = await mesh.rlhf(*train("sft", "--dry-run", "-o", "json"))
    assert done.json["params"]["batch_size"] == 64
    await mesh.rlhf(*train("sft", "--dry-run", "--set", "steps=0"), check=2)
    assert mesh.trainer.running == {}


async def test_a_watched_job_ends_with_its_result(mesh: FakeMesh) -> None:
    mesh.trainer.step_seconds = 0.05
    done = await mesh.rlhf(*train("sft", "--name", "run", "--watch", "-o", "json"))
    assert done.json["state"] == "JOB_STATE_SUCCEEDED"
    assert "checkpoint run/step-10 is ready, held-out loss 2.5, held-out score 0.500" in done.err
    assert "succeeded  run, 10/10 steps" in done.err
    last = [line for line in done.err.splitlines() if line.startswith("run ")][-1]
    assert "step 10/10  loss 0.1  held-out score 0.500 (step 10)" in last


async def test_a_warning_is_told_as_it_comes_and_shown_with_the_job(mesh: FakeMesh) -> None:
    mesh.trainer.step_seconds, mesh.trainer.warn_at = 0.05, 3
    done = await mesh.rlhf(*train("sft", "--name", "run", "--watch", "-o", "json"))
    said = "GRADIENT_ZERO: it was 0; what to do: look"
    assert done.err.count(f"warning: {said}") == 1
    assert done.err.index(said) < done.err.index("succeeded")
    assert [warning["reason"] for warning in done.json["warnings"]] == ["GRADIENT_ZERO"]
    assert said in (await mesh.rlhf("job", "show", "run")).out
    listed = (await mesh.rlhf("job", "list")).out.splitlines()
    assert "WARNINGS" in listed[0] and " 1 " in listed[1]


async def test_a_failed_job_exits_with_1_its_error_and_what_to_do(mesh: FakeMesh) -> None:
    mesh.trainer.fail_at = 3
    done = await mesh.rlhf(*train("sft", "--name", "run", "--watch"), check=1)
    assert "failed  run, 2/10 steps" in done.err
    assert "out of memory in the rollout\nWhat to do: lower samples_per_prompt" in done.err
    assert done.out == ""
    assert "out of memory" in (await mesh.rlhf("job", "show", "run")).out
    await mesh.rlhf("job", "watch", "run", check=1)  # it has ended: the answer is the same


async def test_watching_survives_connections_that_break(mesh: FakeMesh) -> None:
    mesh.trainer.step_seconds, mesh.trainer.break_streams = 0.2, 3
    done = await mesh.rlhf(*train("grpo", "--name", "run", "--watch"))
    assert mesh.trainer.break_streams == 0
    assert "connection is lost" in done.err
    assert "step 10/10  reward 0.100" in done.err


async def test_ctrl_c_stops_the_watching_and_not_the_job(mesh: FakeMesh) -> None:
    mesh.trainer.step_seconds = 2
    process = await mesh.begin(*train("sft", "--name", "run", "--watch"))
    assert process.stderr is not None
    async with asyncio.timeout(30):
        line = b""
        while b"training" not in line:
            line = await process.stderr.readline()
            assert line, "it has ended"
    process.send_signal(signal.SIGINT)
    _, err = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 130
    assert b"the job goes on; the same is shown again by: rlhf job watch run\n" in err
    assert mesh.trainer.running[f"{JOBS}/run"].job.state == job_state_pb2.JOB_STATE_RUNNING
    await mesh.rlhf("job", "cancel", "run")
    assert "cancelled  run" in (await mesh.rlhf("job", "watch", "run", check=1)).err
    assert "has ended" in (await mesh.rlhf("job", "cancel", "run", check=5)).err


async def finished(mesh: FakeMesh, *more: str, algorithm: str = "sft") -> None:
    await mesh.rlhf(*train(algorithm, "--name", "run", "--watch", *more))


async def test_lists_are_filtered_by_state(mesh: FakeMesh) -> None:
    await finished(mesh)
    mesh.trainer.step_seconds = 10
    await mesh.rlhf(*train("sft", "--name", "later"))
    assert (await mesh.rlhf("job", "list", "-o", "name")).out.split() == [f"{JOBS}/later", f"{JOBS}/run"]
    assert (await mesh.rlhf("job", "list", "-o", "name", "--state", "succeeded")).out == f"{JOBS}/run\n"


async def test_logs_by_tail_follow_and_json(mesh: FakeMesh) -> None:
    await finished(mesh)
    everything = [f"step {step} of training" for step in range(1, 11)]
    mesh.trainer.break_streams = 1
    assert (await mesh.rlhf("job", "logs", "run")).out.splitlines() == everything
    assert (await mesh.rlhf("job", "logs", "run", "--tail", "2")).out.splitlines() == everything[-2:]
    lines = (await mesh.rlhf("job", "logs", "run", "--tail", "1", "-o", "json")).out.splitlines()
    assert [json.loads(line)["ordinal"] for line in lines] == ["10"]
    mesh.trainer.step_seconds = 0.2
    await mesh.rlhf(*train("sft", "--name", "live"))
    followed = await mesh.rlhf("job", "logs", "live", "--follow", "--tail", "3")
    assert followed.out.splitlines()[-1] == everything[-1]
    shown = followed.out.splitlines()
    assert shown == everything[-len(shown) :]  # none twice, none missing


async def test_metrics_by_pattern_and_form(mesh: FakeMesh) -> None:
    await finished(mesh)
    shown = await mesh.rlhf("job", "metrics", "run")
    assert "1 series under verl's own names" in shown.err
    table = shown.out.splitlines()
    assert [line.split()[0] for line in table[1:]] == [
        "actor/kl", "train/loss", "validation/score/count", "validation/score/mean",
    ]  # fmt: skip
    text = (await mesh.rlhf("job", "metrics", "run", "--metric", "*/kl", "-o", "csv")).out
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [int(row["step"]) for row in rows] == list(range(1, 11))
    assert rows[1]["value"] == "nan"
    assert float(rows[9]["value"]) == pytest.approx(0.01)
    as_json = (await mesh.rlhf("job", "metrics", "run", "--metric", "train/*", "-o", "json")).json
    assert {point["metric"] for point in as_json} == {"train/loss"}


async def test_samples_are_shown_as_they_are(mesh: FakeMesh) -> None:
    await finished(mesh)
    shown = (await mesh.rlhf("job", "samples", "run", "--step", "0", "--limit", "2")).out.splitlines()
    assert len(shown) == 3
    assert "<|user|>31200[/b]⏎" in shown[1]
    assert "3[red]" in shown[1]
    as_json = (await mesh.rlhf("job", "samples", "run", "--step", "10", "--limit", "0", "-o", "json")).json
    assert [sample["score"] for sample in as_json] == [1.0, 1.0, 0.0, 0.0]


async def test_a_checkpoint_is_downloaded_verified_and_resumed(mesh: FakeMesh, tmp_path: Path) -> None:
    await finished(mesh)
    listed = (await mesh.rlhf("checkpoint", "list", "run")).out
    assert "run/step-10" in listed and "HELD-OUT LOSS" in listed and "2.5" in listed
    mesh.trainer.break_streams = 2
    folder = tmp_path / "model"
    done = await mesh.rlhf("checkpoint", "download", "run", "--to", str(folder))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == WEIGHTS
    assert any(offset > 0 for offset in mesh.trainer.download_offsets)
    assert "from_pretrained" in done.err
    mesh.trainer.download_offsets.clear()
    await mesh.rlhf("checkpoint", "download", "run/step-10", "--to", str(folder))
    assert mesh.trainer.download_offsets == []  # everything was there
    (folder / "config.json").write_text("mine")
    assert "config.json" in (await mesh.rlhf("checkpoint", "download", "run", "--to", str(folder), check=5)).err
    assert (folder / "config.json").read_text() == "mine"
    await mesh.rlhf("checkpoint", "download", "run", "--to", str(folder), "--force")
    assert (folder / "config.json").read_bytes() == WEIGHTS["config.json"]


async def test_bytes_that_do_not_have_their_hash_are_never_left_there(mesh: FakeMesh, tmp_path: Path) -> None:
    await finished(mesh)
    mesh.trainer.corrupt_downloads = True
    done = await mesh.rlhf("checkpoint", "download", "run", "--to", str(tmp_path / "model"), check=1)
    assert "SHA-256" in done.err
    assert not [path for path in (tmp_path / "model").rglob("*") if path.is_file()]


@pytest.mark.parametrize("checkpoint", ["run", "run/step-10", f"{JOBS}/run/checkpoints/step-10"])
async def test_a_checkpoint_becomes_a_model(mesh: FakeMesh, checkpoint: str) -> None:
    await finished(mesh)
    done = await mesh.rlhf("model", "import", "whole", "--checkpoint", checkpoint)
    made = mesh.trainer.models["projects/default/models/whole"]
    assert made.source.checkpoint == f"{JOBS}/run/checkpoints/step-10"
    assert ["source", "checkpoint", "run/step-10"] in [line.split() for line in done.out.splitlines()]
    made.parents[:] = [made.source.checkpoint, "projects/default/models/tiny"]
    shown = [line.split() for line in (await mesh.rlhf("model", "show", "whole")).out.splitlines()]
    assert ["source", "checkpoint", "run/step-10,", "merged"] in shown
    assert ["made", "from", "run/step-10,", "tiny"] in shown
    assert "there is no" in (await mesh.rlhf("model", "import", "x", "--checkpoint", "run/step-3", check=4)).err


@pytest.mark.parametrize("model", ["run", "run/step-10", f"{JOBS}/run", f"{JOBS}/run/checkpoints/step-10"])
async def test_a_job_goes_on_from_a_checkpoint(mesh: FakeMesh, model: str) -> None:
    await finished(mesh)
    await mesh.rlhf(*train("grpo", "--name", "next", model=model))
    assert mesh.trainer.running[f"{JOBS}/next"].job.base_model == f"{JOBS}/run/checkpoints/step-10"


async def test_what_is_neither_model_nor_job_is_told(mesh: FakeMesh) -> None:
    async def said(*words: str) -> str:
        return (await mesh.rlhf(*words, check=4)).err

    assert "no model and no job 'absent'; there is tiny" in await said(*train("sft", model="absent"))
    assert "no model and no job 'tinny'; did you mean tiny?" in await said(*train("sft", model="tinny"))
    assert "; there is none yet, `rlhf train` makes one" in await said("job", "show", "absent")
    await mesh.rlhf(*train("sft", "--name", "first-try"))
    assert "did you mean first-try?" in await said("job", "show", "fist-try")
    mesh.trainer.step_seconds = 10
    await mesh.rlhf(*train("sft", "--name", "young"))
    assert "no checkpoint that is ready" in (await mesh.rlhf(*train("sft", model="young"), check=4)).err


async def test_a_job_is_made_again_and_two_jobs_are_compared(mesh: FakeMesh) -> None:
    await mesh.rlhf(*train("sft", "--set", "seed=7", "--name", "first", "--priority", "3", "--label", "a=b"))
    first = mesh.trainer.running[f"{JOBS}/first"].job
    first.inputs.base_manifest_sha256, first.inputs.dataset_sha256 = "a" * 64, "d" * 64
    first.software["verl"] = "0.9.1"
    done = await mesh.rlhf("job", "replay", "first", "--name", "again", "-o", "name")
    assert done.out == f"{JOBS}/again\n"
    again = mesh.trainer.running[f"{JOBS}/again"].job
    for field in ("algorithm", "base_model", "dataset_version", "params", "placement", "priority", "labels", "inputs"):
        assert getattr(again, field) == getattr(first, field), field
    again.software["verl"] = "0.9.1"
    same = await mesh.rlhf("job", "diff", "first", "again")
    assert same.out == "" and "the same configuration, data and code" in same.err

    more = ("--set", "seed=8", "--set", "lora.rank=4", "--name", "other")
    await mesh.rlhf(*train("sft", *more, dataset="digits:3"))
    other = mesh.trainer.running[f"{JOBS}/other"].job
    other.inputs.base_manifest_sha256, other.inputs.dataset_sha256 = "a" * 64, "e" * 64
    other.inputs.reward_models["projects/default/models/judge"] = "f" * 64
    other.software["verl"] = "0.9.2"
    other.resume_from = f"{JOBS}/first/checkpoints/step-4"
    table = (await mesh.rlhf("job", "diff", "first", "other")).out
    assert re.search(r"^config +params\.seed +7\S* +8", table, re.MULTILINE)
    assert re.search(r"^data +dataset +digits:2 +digits:3", table, re.MULTILINE)
    assert "first/step-4" in (await mesh.rlhf("job", "show", "other")).out
    found = (await mesh.rlhf("job", "diff", "first", "other", "-o", "json")).json
    assert found["jobs"] == [f"{JOBS}/first", f"{JOBS}/other"]
    assert {item["field"] for item in found["config"]} >= {"params.seed", "params.lora.rank", "priority"}
    assert [item["field"] for item in found["data"]] == [
        *("dataset", "dataset.sha256", "resumes", "reward model judge.sha256")
    ]
    assert found["code"] == [{"field": "verl", "one": "0.9.1", "other": "0.9.2"}]


async def test_a_replay_can_be_tried_dry(mesh: FakeMesh) -> None:
    await mesh.rlhf(*train("sft", "--name", "first"))
    done = await mesh.rlhf("job", "replay", "first", "--dry-run")
    assert "nothing was started" in done.err
    assert list(mesh.trainer.running) == [f"{JOBS}/first"]
    await mesh.rlhf("job", "replay", "absent", check=4)


async def test_a_recipe_says_what_it_cannot_do_without(mesh: FakeMesh) -> None:
    shown = await mesh.rlhf("recipe", "show", "ppo-chat")
    assert "must be given" in shown.out and "--set reward.params.model=…" in shown.out + shown.err
    where = ("--model", "tiny", "--dataset", "digits:2", "--name", "pleasing")
    refused = await mesh.rlhf("recipe", "run", "ppo-chat", *where, check=2)
    assert "--set reward.params.model: must be given: the reward model that judges" in refused.err
    assert f"{JOBS}/pleasing" not in mesh.trainer.running
    await mesh.rlhf("recipe", "run", "ppo-chat", *where, "--set", "reward.params.model=tiny")
    params = MessageToDict(mesh.trainer.running[f"{JOBS}/pleasing"].job.params)
    assert params["reward"] == {"name": "model", "params": {"model": "projects/default/models/tiny"}}


async def test_a_recipe_is_run_with_changes_of_its_own(mesh: FakeMesh) -> None:
    listed = (await mesh.rlhf("recipe", "list", "-o", "name")).out.split()
    assert {"sft-chat", "sft-lora", "grpo-math"} <= set(listed)
    shown = (await mesh.rlhf("recipe", "show", "sft-lora")).out
    assert "lora.rank = 16" in shown and "sft-lora, version 1" in shown
    where = ("--model", "tiny", "--dataset", "digits:2", "--name", "mine", "--set", "lora.rank=4", "--set", "steps=2")
    await mesh.rlhf("recipe", "run", "sft-lora", *where)
    job = mesh.trainer.running[f"{JOBS}/mine"].job
    params = MessageToDict(job.params)
    assert (job.algorithm, params["lora"]["rank"], params["lora"]["alpha"], params["steps"]) == ("sft", 4, 32, 2)
    assert dict(job.labels) == {"recipe": "sft-lora", "recipe-version": "1"}
    refused = await mesh.rlhf("recipe", "run", "grpo-math", *where, check=2)
    assert "--validation" in refused.err
    await mesh.rlhf("recipe", "show", "absent", check=4)


async def test_a_checkpoint_and_a_job_are_deleted_when_somebody_says_yes(mesh: FakeMesh) -> None:
    await mesh.rlhf(*train("sft", "--name", "run", "--watch"))
    for noun, what in (("checkpoint", "run/step-10"), ("job", "run")):
        refused = await mesh.rlhf(noun, "delete", what, check=2)
        assert "--yes" in refused.err and "nothing was deleted" in refused.err
    assert "say which checkpoint" in (await mesh.rlhf("checkpoint", "delete", "run", "--yes", check=2)).err
    assert "force it" in (await mesh.rlhf("checkpoint", "delete", "run/step-10", "--yes", check=5)).err
    await mesh.rlhf("checkpoint", "delete", "run/step-10", "--yes", "--force")
    assert "PRUNED" in (await mesh.rlhf("checkpoint", "list", "run")).out
    await mesh.rlhf("job", "delete", "run", "--yes")
    await mesh.rlhf("job", "show", "run", check=4)
