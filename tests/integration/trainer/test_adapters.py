"""Adapters as what jobs and models are made from: scripted runs over real weights, everything else real."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import psycopg
import pytest
import torch
from psycopg.types.json import Jsonb
from rlhf.trainer.v1 import model_pb2
from rlhf.trainer.v1 import trainer_service_pb2 as pb
from rlhf.type.v1 import checkpoint_pb2, job_state_pb2

from services.mesh.artifacts import ArtifactStore, Manifest, references
from services.mesh.errors import DataLoss, FailedPrecondition, InvalidArgument, NotFound
from services.mesh.rpc import client
from services.trainer.training import launch_plan as plans
from tests.fix_references import insert_model
from tests.fix_reward_model import tiny_model as tiny_model
from tests.fix_reward_model import tiny_reward_model as tiny_reward_model
from tests.integration.trainer import test_runs
from tests.integration.trainer.test_corruption import flip_a_byte
from tests.integration.trainer.test_merge import adapter_over, logits
from tests.integration.trainer.test_service import imported

bench = test_runs.bench
Bench = test_runs.Bench
PARENT = test_runs.PARENT
BASE = f"{PARENT}/models/real"


async def store_model(bench: Bench, folder: Path, name: str = BASE) -> Manifest:
    """A model as an import leaves it."""
    manifest = await ArtifactStore(f"file://{bench.home}/artifacts").put_folder(folder)
    facts = {"architecture": "LlamaForCausalLM", "parameter_count": 66624, "context_length": 64}
    await insert_model(bench.database_url, name, manifest, **facts)
    return manifest


async def trained(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, weights: Path, base: str, kind: str = "adapter"
) -> checkpoint_pb2.Checkpoint:
    """The checkpoint of a job that started from `base` and made `weights`."""
    for worker in bench.workers:
        await worker.stop()
    bench.workers.clear()
    await bench.start_worker({"save_at": [6], "kind": kind, "weights": str(weights)}, monkeypatch)
    ended = await bench.ended(await bench.create(base_model=base))
    assert ended.state == job_state_pb2.JOB_STATE_SUCCEEDED, ended.error
    [found] = await bench.checkpoints(ended.name)
    return found


def loaded(bench: Bench, job: str) -> list[Path]:
    """What each attempt of a job was given for a model."""
    found = [plans.read(path.parent) for path in (bench.home / "trainer" / "jobs").glob("*/attempts/*/plan.json")]
    return [Path(plan.model_path) for plan in sorted(found, key=lambda plan: plan.attempt) if plan.job == job]


def base_name(bench: Bench, job: str) -> str:
    """What the adapters of a job say that they lie over."""
    plans_ = [plans.read(path.parent) for path in (bench.home / "trainer" / "jobs").glob("*/attempts/*/plan.json")]
    return next(plan.base_name for plan in plans_ if plan.job == job)


def job_of(checkpoint: checkpoint_pb2.Checkpoint) -> str:
    return checkpoint.name.partition("/checkpoints/")[0]


async def import_(bench: Bench, checkpoint: str, model_id: str) -> model_pb2.Model:
    request = pb.ImportModelRequest(parent=PARENT, model_id=model_id)
    request.model.source.checkpoint = checkpoint
    return await imported(bench.trainer, (await client.call(bench.trainer.ImportModel(request))).name)


async def model_file(bench: Bench, name: str, path: str, offset: int = 0) -> bytes:
    request = pb.DownloadModelRequest(name=name, path=path, offset_bytes=offset)
    return b"".join([reply.chunk async for reply in client.stream(bench.trainer.DownloadModel(request))])


def merging(bench: Bench, does: str) -> None:
    """Have the worker's Python do something else first, in a shell, where it is started to merge."""
    path = Path(bench.values["RLHF_TRAINER_WORKER_PYTHON"])
    lines = [line for line in path.read_text().splitlines() if "merge)" not in line]
    path.write_text("\n".join([lines[0], f'case "$3" in merge) {does or ":"};; esac', *lines[1:], ""]))


def is_process(pid: str) -> bool:
    return Path(f"/proc/{pid.strip()}").exists()


def same_answers(folder: Path, base: Path, adapters: Sequence[Path]) -> None:
    torch.testing.assert_close(logits(folder), logits(base, *adapters), atol=1e-5, rtol=1e-4)


async def test_a_job_starts_from_an_adapter_and_from_one_over_that(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tiny_model: Path, tmp_path: Path
) -> None:
    first, second = adapter_over(tiny_model, tmp_path / "1"), adapter_over(tiny_model, tmp_path / "2", seed=2)
    base = await store_model(bench, tiny_model)
    one = await trained(bench, monkeypatch, first, BASE)
    two = await trained(bench, monkeypatch, second, one.name)
    [merged] = loaded(bench, job_of(two))
    same_answers(merged, tiny_model, [first])
    assert base_name(bench, job_of(one)) == "real"
    assert base_name(bench, job_of(two)) == f"{job_of(one).rpartition('/')[2]}/step-6"
    async with await psycopg.AsyncConnection.connect(bench.database_url) as connection:
        source = Jsonb({"hub": "hf:people/their-model@main"})
        await connection.execute("UPDATE trainer.models SET source = %s WHERE name = %s", (source, BASE))
    assert two.base_model == one.name and two.parents[0] == one.name
    assert two.provenance.base_model == one.name and two.provenance.base_manifest_sha256 == one.manifest_sha256

    over_the_hub = await trained(bench, monkeypatch, second, BASE)
    assert base_name(bench, job_of(over_the_hub)) == "people/their-model"

    three = await trained(bench, monkeypatch, second, two.name)
    [merged_twice] = loaded(bench, job_of(three))
    same_answers(merged_twice, tiny_model, [first, second])
    job = await bench.ended(job_of(three))
    assert job.inputs.base_manifest_sha256 == two.manifest_sha256

    resolved = await client.call(bench.trainer.ResolveModel(pb.ResolveModelRequest(parent=PARENT, model=three.name)))
    assert [layer.name for layer in resolved.layers] == [BASE, one.name, two.name, three.name]
    assert resolved.layers[1].manifest_sha256 == one.manifest_sha256
    assert (resolved.kind, resolved.context_length) == (model_pb2.Model.KIND_LANGUAGE_MODEL, 64)

    # All of it as a model, with what it was made from.
    model = await import_(bench, three.name, "whole")
    assert model.state == model_pb2.Model.STATE_READY, model.error
    assert list(model.parents) == [three.name, two.name, one.name, BASE]
    assert model.source.checkpoint == three.name
    assert (model.architecture, model.context_length) == ("LlamaForCausalLM", 32) and model.parameter_count
    folder = tmp_path / "downloaded"
    folder.mkdir()
    for file in model.files:
        (folder / file.path).write_bytes(await model_file(bench, model.name, file.path))
    assert Manifest.of_folder(folder).sha256 == model.manifest_sha256 != base.sha256
    same_answers(folder, tiny_model, [first, second, second])


async def test_what_was_merged_serves_every_attempt_until_it_has_changed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tiny_model: Path, tmp_path: Path
) -> None:
    adapter = adapter_over(tiny_model, tmp_path / "adapter")
    await store_model(bench, tiny_model)
    one = await trained(bench, monkeypatch, adapter, BASE)
    await bench.workers.pop().stop()
    script = {"save_at": [2, 6], "kind": "adapter", "weights": str(adapter), "die_at": 4}
    await bench.start_worker(script, monkeypatch)
    ended = await bench.ended(await bench.create(base_model=one.name))
    assert [attempt.resumed_from_step for attempt in ended.attempts] == [0, 2]
    merged, again = loaded(bench, ended.name)
    assert merged == again
    made_at = merged.stat().st_ctime_ns
    flip_a_byte(merged / "model.safetensors")
    two = await trained(bench, monkeypatch, adapter, one.name)
    assert loaded(bench, job_of(two)) == [merged] and merged.stat().st_ctime_ns > made_at
    assert Manifest.of_folder(merged).sha256 == merged.name
    same_answers(merged, tiny_model, [adapter])
    assert [path.name for path in merged.parent.iterdir()] == [merged.name], "nothing else is left"


async def test_the_base_must_still_be_there_as_it_was(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tiny_model: Path, tmp_path: Path
) -> None:
    await store_model(bench, tiny_model)
    one = await trained(bench, monkeypatch, adapter_over(tiny_model, tmp_path / "adapter"), BASE)
    with pytest.raises(FailedPrecondition, match=f"{one.name} use it"):
        await client.call(bench.trainer.DeleteModel(pb.DeleteModelRequest(name=BASE)))
    await client.call(bench.trainer.DeleteModel(pb.DeleteModelRequest(name=BASE, force=True)))
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    (other / "generation_config.json").write_text("{}")
    await store_model(bench, other)
    # The adapter holds the bytes that it lies over, whatever has their name.
    from_it = await bench.create(base_model=one.name)
    await client.call(bench.trainer.CancelTrainingJob(pb.CancelTrainingJobRequest(name=from_it)))
    await bench.ended(from_it)
    # As one of a time before there were references, whose base was deleted then.
    async with await psycopg.AsyncConnection.connect(bench.database_url) as connection:
        await references.drop_inputs(connection, one.name)
    with pytest.raises(InvalidArgument, match=r"adapter over projects/default/models/real as it was then.* are gone"):
        await bench.create(base_model=one.name)
    request = pb.ImportModelRequest(parent=PARENT, model_id="merged")
    request.model.source.checkpoint = one.name
    with pytest.raises(InvalidArgument, match="are gone; import the same files again") as caught:
        await client.call(bench.trainer.ImportModel(request))
    assert [violation.field for violation in caught.value.violations] == ["model.source.checkpoint"]
    # The same content under another name is the same base.
    await store_model(bench, tiny_model, f"{PARENT}/models/once-more")
    assert (await bench.ended(await bench.create(base_model=one.name))).state == job_state_pb2.JOB_STATE_SUCCEEDED


async def test_the_base_of_an_adapter_stays_while_a_job_starts_from_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tiny_model: Path, tmp_path: Path
) -> None:
    await store_model(bench, tiny_model)
    one = await trained(bench, monkeypatch, adapter_over(tiny_model, tmp_path / "adapter"), BASE)
    await bench.workers.pop().stop()
    name = await bench.create(base_model=one.name)
    with pytest.raises(FailedPrecondition, match=f"{name} use it"):
        await client.call(bench.trainer.DeleteModel(pb.DeleteModelRequest(name=BASE)))
    await client.call(bench.trainer.CancelTrainingJob(pb.CancelTrainingJobRequest(name=name)))
    await client.call(bench.trainer.DeleteModel(pb.DeleteModelRequest(name=BASE, force=True)))


async def test_a_spoilt_adapter_is_marked_and_nothing_starts_from_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tiny_model: Path, tmp_path: Path
) -> None:
    adapter = adapter_over(tiny_model, tmp_path / "adapter")
    await store_model(bench, tiny_model)
    one = await trained(bench, monkeypatch, adapter, BASE)
    weights = next(file for file in (await get(bench, one.name)).files if file.path.endswith(".safetensors"))
    flip_a_byte(bench.home / "artifacts" / weights.sha256[:2] / weights.sha256)
    shutil.rmtree(bench.home / "cache", ignore_errors=True)
    ended = await bench.ended(await bench.create(base_model=one.name))
    assert ended.state == job_state_pb2.JOB_STATE_FAILED and "no longer match their hash" in ended.error.message
    assert (await get(bench, one.name)).state == checkpoint_pb2.Checkpoint.STATE_CORRUPT
    with pytest.raises(InvalidArgument, match="CORRUPT; it must be READY"):
        await bench.create(base_model=one.name)
    with pytest.raises(InvalidArgument, match="CORRUPT; it must be READY"):
        await import_(bench, one.name, "merged")


async def test_an_adapter_that_does_not_fit_fails_the_job_with_why(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tiny_model: Path, tmp_path: Path
) -> None:
    """As of a kind that this release does not merge; of our own jobs there is none."""
    adapter = adapter_over(tiny_model, tmp_path / "adapter", use_dora=True)
    await store_model(bench, tiny_model)
    one = await trained(bench, monkeypatch, adapter, BASE)
    ended = await bench.ended(await bench.create(base_model=one.name))
    assert ended.state == job_state_pb2.JOB_STATE_FAILED and "sets use_dora" in ended.error.message
    assert f"{one.name} cannot be merged into {BASE}" in ended.error.message
    model = await import_(bench, one.name, "merged")
    assert model.state == model_pb2.Model.STATE_FAILED and "sets use_dora" in model.error.message


async def test_a_job_that_is_cancelled_while_it_merges_ends_at_once_and_with_it_the_merge(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tiny_model: Path, tmp_path: Path
) -> None:
    await store_model(bench, tiny_model)
    one = await trained(bench, monkeypatch, adapter_over(tiny_model, tmp_path / "adapter"), BASE)
    note = tmp_path / "pid"
    merging(bench, f"echo $$ > {note}; exec sleep 1000")
    name = await bench.create(base_model=one.name)
    await bench.until(name, lambda job: job.phase == "merging" and note.exists() and bool(note.read_text()))
    await client.call(bench.trainer.CancelTrainingJob(pb.CancelTrainingJobRequest(name=name)))
    assert (await bench.ended(name)).state == job_state_pb2.JOB_STATE_CANCELLED
    assert not is_process(note.read_text())
    assert not list((bench.home / "cache" / "merged").glob("*/*"))


async def test_a_merge_that_dies_is_tried_again_and_then_told(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tiny_model: Path, tmp_path: Path
) -> None:
    """As one does that takes more memory than there is."""
    await store_model(bench, tiny_model)
    one = await trained(bench, monkeypatch, adapter_over(tiny_model, tmp_path / "adapter"), BASE)
    note = tmp_path / "tries"
    merging(bench, f"echo >> {note}; kill -9 $$")
    ended = await bench.ended(await bench.create(base_model=one.name))
    assert ended.state == job_state_pb2.JOB_STATE_FAILED and len(note.read_text().splitlines()) == 3
    assert f"{one.name} was not merged into {BASE}" in ended.error.message and "memory" in ended.error.message
    merging(bench, "")
    assert (await bench.ended(await bench.create(base_model=one.name))).state == job_state_pb2.JOB_STATE_SUCCEEDED


async def test_full_weights_and_reward_models_become_models_without_a_copy(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tiny_model: Path, tiny_reward_model: Path
) -> None:
    await store_model(bench, tiny_model)
    full = await trained(bench, monkeypatch, tiny_model, BASE, "full")
    judge = await trained(bench, monkeypatch, tiny_reward_model, BASE, "reward")
    before = set((bench.home / "artifacts").glob("??/*"))
    language, reward = model_pb2.Model.KIND_LANGUAGE_MODEL, model_pb2.Model.KIND_REWARD_MODEL
    for checkpoint, architecture, kind in (
        (full, "LlamaForCausalLM", language),
        (judge, "LlamaForSequenceClassification", reward),
    ):
        model = await import_(bench, checkpoint.name, f"of-{checkpoint.kind}")
        assert model.state == model_pb2.Model.STATE_READY, model.error
        assert (model.architecture, model.kind) == (architecture, kind) and list(model.parents) == [checkpoint.name]
        assert model.manifest_sha256 == checkpoint.manifest_sha256 and model.size_bytes == checkpoint.size_bytes
    assert set((bench.home / "artifacts").glob("??/*")) == before
    with pytest.raises(InvalidArgument, match="reward model"):
        await bench.create(base_model=f"{PARENT}/models/of-{judge.kind}")
    for name in (judge.name, f"{PARENT}/models/of-{judge.kind}"):
        resolved = await client.call(bench.trainer.ResolveModel(pb.ResolveModelRequest(parent=PARENT, model=name)))
        assert [(layer.name, layer.manifest_sha256) for layer in resolved.layers] == [(name, judge.manifest_sha256)]
        assert resolved.kind == model_pb2.Model.KIND_REWARD_MODEL


async def test_a_reference_to_nothing_that_loads_is_refused_by_its_field(bench: Bench, tiny_model: Path) -> None:
    base = await store_model(bench, tiny_model)
    for name, told in ((f"{PARENT}/models/none", "there is no"), ("nonsense", "must be of the form")):
        with pytest.raises((InvalidArgument, NotFound), match=told):
            await client.call(bench.trainer.ResolveModel(pb.ResolveModelRequest(parent=PARENT, model=name)))
    with pytest.raises(InvalidArgument) as caught:
        await client.call(bench.trainer.ResolveModel(pb.ResolveModelRequest(parent="nowhere", model=BASE)))
    assert [each.field for each in caught.value.violations] == ["parent"]
    [weights] = [file for file in base.files if file.path == "model.safetensors"]
    (bench.home / "artifacts" / weights.sha256[:2] / weights.sha256).unlink()
    with pytest.raises(InvalidArgument) as caught:
        await client.call(bench.trainer.ResolveModel(pb.ResolveModelRequest(parent=PARENT, model=BASE)))
    assert [each.field for each in caught.value.violations] == ["model"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (f"{PARENT}/trainingJobs/none/checkpoints/step-1", "there is no"),
        (f"{PARENT}/models/real", "must be of the form"),
        ("nonsense", "must be of the form"),
        ("", "must be of the form"),
    ],
)
async def test_only_a_checkpoint_is_imported_as_one(bench: Bench, tiny_model: Path, name: str, told: str) -> None:
    await store_model(bench, tiny_model)
    request = pb.ImportModelRequest(parent=PARENT, model_id="x", validate_only=True)
    request.model.source.checkpoint = name
    with pytest.raises(InvalidArgument, match=told) as caught:
        await client.call(bench.trainer.ImportModel(request))
    assert [violation.field for violation in caught.value.violations] == ["model.source.checkpoint"]


async def test_a_model_is_downloaded_from_any_byte_on_and_a_changed_one_is_told(bench: Bench, tiny_model: Path) -> None:
    manifest = await store_model(bench, tiny_model)
    whole = (tiny_model / "model.safetensors").read_bytes()
    assert await model_file(bench, BASE, "model.safetensors") == whole
    assert await model_file(bench, BASE, "model.safetensors", 1000) == whole[1000:]
    sha256 = manifest.file("model.safetensors").sha256
    flip_a_byte(bench.home / "artifacts" / sha256[:2] / sha256)
    with pytest.raises((DataLoss, FailedPrecondition), match="no longer match their hash"):
        await model_file(bench, BASE, "model.safetensors")


async def get(bench: Bench, name: str) -> checkpoint_pb2.Checkpoint:
    return await client.call(bench.trainer.GetCheckpoint(pb.GetCheckpointRequest(name=name)))
