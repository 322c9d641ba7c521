"""Every namespace of the client against real services, through the real gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from rlhf.dataset.v1.dataset_pb2 import Upload
from rlhf.type.v1.job_state_pb2 import JobState

from services.client import AsyncClient, Client, Progress
from services.mesh.errors import AlreadyExists, DeadlineExceeded, InvalidArgument, NotFound, PlatformError
from tests.integration.client.conftest import rows, upload_rows


def test_datasets_are_made_listed_changed_and_deleted(client: Client) -> None:
    made = client.datasets.create("first", "messages", labels={"split": "train"})
    assert (made.name, made.format, dict(made.labels)) == (
        "projects/default/datasets/first", "messages", {"split": "train"},
    )  # fmt: skip
    made.display_name = "The first"
    assert client.datasets.update(made, ["display_name"]).display_name == "The first"
    assert client.datasets.get("first") == client.datasets.get("projects/default/datasets/first")
    client.datasets.delete("first")
    with pytest.raises(NotFound) as caught:
        client.datasets.get("first")
    assert caught.value.reason == "DATASET_NOT_FOUND"


def test_pages_are_turned_and_a_limit_stops_early(client: Client) -> None:
    names = {client.datasets.create(f"page-{n}", "prompt").name for n in range(5)}
    listed = [dataset.name for dataset in client.datasets.list()]
    assert names <= set(listed)
    assert len(list(client.datasets.list(limit=3))) == 3
    version = upload_rows(client, "many", 2500)
    values = [row.row_index for row in client.dataset_versions.rows(version)]
    assert values == list(range(2500))
    assert [row.row_index for row in client.dataset_versions.rows("many", first=10, limit=3)] == [10, 11, 12]


def test_all_violations_arrive(client: Client, version: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        client.training_jobs.create(
            "sft", model="base", dataset=version, params={"batch_size": -1, "learning_rate": "x"}
        )
    fields = {violation.field for violation in caught.value.violations}
    assert {"training_job.params.batch_size", "training_job.params.learning_rate"} <= fields


def test_validate_only_makes_nothing(client: Client, version: str) -> None:
    params = {"batch_size": 8, "max_length": 32, "steps": 6}
    checked = client.training_jobs.create(
        "sft", model="base", dataset=version, params=params, name="unmade", validate_only=True
    )
    assert checked.params["batch_size"] == 8
    with pytest.raises(NotFound):
        client.training_jobs.get("unmade")


def test_an_upload_of_a_file_tells_its_progress(client: Client, tmp_path: Path) -> None:
    from services.client import json_lines

    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"".join(json_lines(rows(30_000))))
    client.datasets.create("from-file", "messages")
    told: list[Progress] = []
    done = client.uploads.upload("from-file", file, on_progress=told.append)
    assert (done.state, done.report.row_count) == (Upload.STATE_SUCCEEDED, 30_000)
    size = file.stat().st_size
    for phase in ("hashing", "sending"):
        counts = [each.done for each in told if each.phase == phase]
        assert counts == sorted(counts) and (counts[0], counts[-1]) == (0, size)
    assert client.uploads.get(done.name).dataset_version == done.dataset_version
    assert [upload.name for upload in client.uploads.list("from-file")] == [done.name]


def test_wrong_rows_are_findings_and_an_empty_file_is_refused(client: Client, tmp_path: Path) -> None:
    client.datasets.create("wrong", "messages")
    done = client.uploads.upload("wrong", [b'{"text": 1}\n', b"{\n"], file_name="rows.jsonl")
    assert done.state == Upload.STATE_FAILED
    assert [finding.line for finding in done.report.findings] == [1, 2]
    (tmp_path / "empty.jsonl").touch()
    for content in (tmp_path / "empty.jsonl", tmp_path / "absent.jsonl"):
        with pytest.raises(InvalidArgument):
            client.uploads.upload("wrong", content)


def test_rows_come_back_as_they_were(client: Client, version: str, tmp_path: Path) -> None:
    import json

    target = tmp_path / "deep" / "rows.jsonl"
    found = client.dataset_versions.download(version, target)
    assert found.row_count == 64
    assert [json.loads(line)["messages"] for line in target.read_text().splitlines()] == [
        row["messages"] for row in rows(64)
    ]
    assert [path.name for path in target.parent.iterdir()] == ["rows.jsonl"]
    with pytest.raises(AlreadyExists):
        client.dataset_versions.download(version, target)
    client.dataset_versions.download(version, target, overwrite=True)


def test_a_job_is_followed_to_its_end(client: Client, new_job: Callable[..., str], tmp_path: Path) -> None:
    name = new_job(name="whole")
    job = client.training_jobs.wait("whole", timeout_seconds=60)
    assert (job.name, job.state, job.step_count) == (name, JobState.JOB_STATE_SUCCEEDED, 40)
    events = list(client.training_jobs.events(name))
    states = [event.training_job.state for event in events if event.HasField("training_job")]
    assert states[0] == JobState.JOB_STATE_QUEUED and states[-1] == JobState.JOB_STATE_SUCCEEDED
    assert {event.checkpoint.step for event in events if event.HasField("checkpoint")} == {20, 40}
    losses = [point.step for point in client.training_jobs.metrics(name, ["train/loss"])]
    assert losses == list(range(1, 41))
    assert "step 40 of attempt 1" in [line.text for line in client.training_jobs.logs(name)]
    assert [checkpoint.step for checkpoint in client.checkpoints.list(name)] == [40, 20]
    found = client.checkpoints.download("whole/step-20", tmp_path / "weights")
    assert (tmp_path / "weights" / "model.safetensors").read_text() == "weights 20"
    assert sorted(path.name for path in (tmp_path / "weights").iterdir()) == sorted(f.path for f in found.files)
    assert client.checkpoints.get("whole").step == 40
    assert name in [each.name for each in client.training_jobs.list(states=[JobState.JOB_STATE_SUCCEEDED])]


def test_a_wait_has_an_end(client: Client, new_job: Callable[..., str]) -> None:
    name = new_job(steps=100_000)
    with pytest.raises(DeadlineExceeded) as caught:
        client.training_jobs.wait(name, timeout_seconds=0.5)
    assert caught.value.reason == "WAITED_TOO_LONG"
    client.training_jobs.cancel(name)
    assert client.training_jobs.wait(name, timeout_seconds=60).state == JobState.JOB_STATE_CANCELLED


def test_models_and_registries(client: Client) -> None:
    assert client.models.get("base").name in [model.name for model in client.models.list()]
    with pytest.raises(InvalidArgument) as caught:
        client.models.import_model("outside", "/etc")
    assert caught.value.violations[0].field == "model.source.path"
    assert {"sft", "grpo"} <= {algorithm.entry.id for algorithm in client.algorithms.list()}
    assert client.rewards.get("exact").entry.params_schema.fields
    with pytest.raises(NotFound, match="there are"):
        client.algorithms.get("absent")
    assert "messages" in [each.entry.id for each in client.datasets.formats()]


async def test_the_asynchronous_client_does_the_same_at_once(
    async_client: AsyncClient, new_job: Callable[..., str], tmp_path: Path
) -> None:
    names = [new_job(steps=40), new_job(steps=40)]
    jobs = await asyncio.gather(*(async_client.training_jobs.wait(name, timeout_seconds=60) for name in names))
    assert [job.state for job in jobs] == [JobState.JOB_STATE_SUCCEEDED] * 2
    points = [point.ordinal async for point in async_client.training_jobs.metrics(names[0])]
    assert points == list(range(1, 81))
    await async_client.checkpoints.download(names[1], tmp_path / "weights")
    assert (tmp_path / "weights" / "model.safetensors").read_text() == "weights 40"
    done = await async_client.uploads.upload("examples", [b"{}\n"], file_name="rows.jsonl")
    assert done.state == Upload.STATE_FAILED


def test_a_call_has_a_deadline(client: Client) -> None:
    with pytest.raises(PlatformError) as caught:
        client.with_timeout(1e-6).datasets.get("examples")
    assert caught.value.code in ("DEADLINE_EXCEEDED", "CANCELLED")
    assert client.datasets.formats()


async def test_names_of_nothing_are_told_with_all_else_that_is_wrong(async_client: AsyncClient) -> None:
    params = {
        "learning_rate": 2,
        "reward": {"name": "model", "params": {"model": "nobody", "scale": 0}},
        "critic": {"model": "A B", "micro_batch_size": 7},
    }
    with pytest.raises(InvalidArgument) as caught:
        await async_client.training_jobs.create(
            "ppo", model="nothing", dataset="No Such", params=params, name="No_Name", priority=1000
        )
    found = {violation.field: violation.description for violation in caught.value.violations}
    assert set(found) == {"training_job_id"} | {
        f"training_job.{name}"
        for name in (
            "base_model", "dataset_version", "priority", "params.learning_rate", "params.reward.params.model",
            "params.reward.params.scale", "params.critic.model", "params.critic.micro_batch_size",
        )
    }  # fmt: skip
    assert found["training_job.base_model"] == "there is no model and no job 'nothing'"
    # Alone it is what it always was.
    with pytest.raises(NotFound, match="no model and no job 'nothing'"):
        await async_client.training_jobs.describe("sft", "nothing", "none", "", {})
