"""What the check could not confirm is kept as it was found: scripted runs, everything else real."""

from __future__ import annotations

import pytest
from rlhf.trainer.v1 import trainer_service_pb2 as pb
from rlhf.type.v1 import checkpoint_pb2

from services.mesh.errors import FailedPrecondition, InvalidArgument
from services.mesh.rpc import client
from tests.integration.trainer import test_runs
from tests.integration.trainer.test_corruption import blob, flip_a_byte
from tests.integration.trainer.test_retention import only_weights, states

bench = test_runs.bench
Bench = test_runs.Bench


async def get(bench: Bench, name: str) -> checkpoint_pb2.Checkpoint:
    return await client.call(bench.trainer.GetCheckpoint(pb.GetCheckpointRequest(name=name)))


async def download(bench: Bench, name: str, *, allow_corrupt: bool = True) -> bytes:
    request = pb.DownloadCheckpointRequest(name=name, path="model.safetensors", allow_corrupt=allow_corrupt)
    return b"".join([reply.chunk async for reply in client.stream(bench.trainer.DownloadCheckpoint(request))])


async def test_its_files_stay_and_it_says_what_was_found(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await bench.start_worker({"save_at": [3, 6], "unconfirmed_at": [3, 6]}, monkeypatch)
    name = await bench.create()
    await bench.ended(name)
    assert states(await bench.checkpoints(name)) == {6: "CORRUPT", 3: "CORRUPT"}
    found = await get(bench, f"{name}/checkpoints/step-6")
    assert found.state_reason == "it could not be confirmed: ValueError: other answers at 6?"
    assert {file.path for file in found.files} == {"config.json", "model.safetensors"}
    assert found.size_bytes == sum(file.size_bytes for file in found.files) > 0, "what it occupies"
    assert await download(bench, found.name) == b"weights 6"
    with pytest.raises(FailedPrecondition, match=r"other answers at 6.*--allow-corrupt"):
        await download(bench, found.name, allow_corrupt=False)
    with pytest.raises(InvalidArgument, match="CORRUPT"):
        await bench.create(base_model=found.name)
    assert not list(bench.home.glob("trainer/jobs/*/attempts/*/checkpoints/*")), "the store has the only copy"

    flip_a_byte(blob(bench, found))
    with pytest.raises(Exception, match="no longer match"):
        await download(bench, found.name)
    spoilt = await get(bench, found.name)
    assert not spoilt.files and "other answers" in spoilt.state_reason and "no longer match" in spoilt.state_reason


async def test_a_rule_bounds_them_as_it_bounds_the_others(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    script = {"save_at": [1, 2, 3, 4, 5, 6], "unconfirmed_at": [1, 2, 3, 4]}
    await bench.start_worker(script, monkeypatch)
    name = await bench.create(validation=test_runs.VERSION, checkpoints={"keep_best": 1, "keep_last": 1})
    await bench.ended(name)
    found = {one.step: one for one in await bench.checkpoints(name)}
    assert states(list(found.values())) == {**dict.fromkeys((1, 2, 3, 4), "CORRUPT"), 5: "PRUNED", 6: "READY"}
    await only_weights(bench, 3, 4, 6)
    assert "its files are gone: the job keeps the newest 2" in found[2].state_reason
    assert await download(bench, found[3].name) == b"weights 3"
    with pytest.raises(FailedPrecondition, match="has no files"):
        await download(bench, found[2].name)


async def test_what_is_saved_again_takes_its_place(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """An attempt that came after it; while it is verified the one before is there."""
    monkeypatch.setattr("services.mesh.runs.handler._RETRY_SECONDS", 0.1)
    script = {"save_at": [2, 4], "unconfirmed_at": [2], "die_at": 3, "unverified_from_attempt": 2}
    await bench.start_worker(script, monkeypatch)
    name = await bench.create()
    await bench.ended(name)
    [first] = [one for one in await bench.checkpoints(name) if one.step == 2]
    assert first.state == first.STATE_CORRUPT and first.provenance.attempt == 1
    assert await download(bench, first.name) == b"weights 2"
