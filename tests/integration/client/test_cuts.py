"""A network that breaks: no loss, no doubles, transfers go on, retries are safe."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rlhf.dataset.v1.dataset_pb2 import Upload
from rlhf.type.v1.job_state_pb2 import JobState

from services.client import AsyncClient, Client, json_lines
from services.client.files import CHUNK_BYTES
from services.mesh.errors import Unavailable
from tests.fix_relay import Relay
from tests.fix_rogue import tell
from tests.integration.client.conftest import Mesh, rows, upload_rows

MIB = 1024 * 1024
Cut = tuple[Client, list[str]]


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """6 MB of rows."""
    file = tmp_path / "big.jsonl"
    file.write_bytes(b"".join(json_lines(rows(50_000))))
    return file


def test_metrics_go_on_after_cuts_without_loss_or_doubles(
    cut_client: Cut, cutting: Relay, new_job: Callable[..., str]
) -> None:
    """While the job runs: the stream is cut every few points."""
    client, told = cut_client
    name = new_job(steps=300)
    cutting.cut_after(answer_bytes=2_000, times=8)
    ordinals = [point.ordinal for point in client.training_jobs.metrics(name)]
    assert ordinals == list(range(1, 601))
    assert cutting.cuts >= 2
    assert told and set(told) == {"the connection is lost; trying again"}


def test_events_and_logs_go_on_after_cuts(cut_client: Cut, cutting: Relay, new_job: Callable[..., str]) -> None:
    client, _ = cut_client
    name = new_job(steps=200)
    cutting.cut_after(answer_bytes=1_500, times=4)
    lines = [line.ordinal for line in client.training_jobs.logs(name)]
    assert lines == list(range(1, len(lines) + 1)) and len(lines) >= 200
    assert cutting.cuts >= 2
    stored = [event.last_sequence for event in client.training_jobs.events(name)]
    cutting.cut_after(answer_bytes=600, times=4)
    assert [event.last_sequence for event in client.training_jobs.events(name)] == stored
    assert cutting.cuts >= 2
    assert sorted(set(stored)) == stored


async def test_an_asynchronous_stream_goes_on_after_cuts(
    mesh: Mesh, cutting: Relay, new_job: Callable[..., str]
) -> None:
    name = new_job(steps=300)
    async with AsyncClient(f"127.0.0.1:{cutting.port}", home=mesh.home) as client:
        cutting.cut_after(answer_bytes=2_000, times=5)
        ordinals = [point.ordinal async for point in client.training_jobs.metrics(name)]
        assert ordinals == list(range(1, 601))
        assert cutting.cuts >= 2
        assert (await client.training_jobs.wait(name)).state == JobState.JOB_STATE_SUCCEEDED


def test_an_upload_goes_on_from_what_has_arrived(cut_client: Cut, cutting: Relay, client: Client, big: Path) -> None:
    cut, _ = cut_client
    client.datasets.create("cut-upload", "messages")
    sent: list[int] = []
    cutting.cut_after(request_bytes=int(2.5 * MIB), times=2)
    done = cut.uploads.upload(
        "cut-upload", big, on_progress=lambda each: sent.append(each.done) if each.phase == "sending" else None
    )
    assert cutting.cuts == 2
    assert (done.state, done.report.row_count) == (Upload.STATE_SUCCEEDED, 50_000)
    # What was sent is what is left after each cut, not the file three times over.
    again = sum(1 for before, after in itertools.pairwise(sent) if after < before)
    assert again <= 2 and sent[-1] == big.stat().st_size
    version = client.dataset_versions.get(done.dataset_version)
    assert version.source_sha256 == hashlib.sha256(big.read_bytes()).hexdigest()


def test_an_upload_of_another_process_is_gone_on_with(client: Client, big: Path) -> None:
    client.datasets.create("another", "messages")
    content = big.read_bytes()
    described = Upload(file_name=big.name, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    begun = client.uploads.create("another", described)

    class Broken(Exception):
        pass

    from services.client.files import Source, ignore

    source = Source.open(big, "", ignore)
    read = source.read

    def give_out(offset: int) -> bytes:
        if offset >= 2 * CHUNK_BYTES:
            raise Broken
        return read(offset)

    source.read = give_out  # type: ignore[method-assign]
    with pytest.raises(Broken):
        client.uploads.write(begun, source)
    source.close()
    received = client.uploads.get(begun.name).received_bytes
    assert received == 2 * CHUNK_BYTES
    starts: list[int] = []
    done = client.uploads.upload(
        "another", big, on_progress=lambda each: starts.append(each.done) if each.phase == "sending" else None
    )
    assert (done.name, starts[0]) == (begun.name, received)
    assert done.state == Upload.STATE_SUCCEEDED


def test_downloads_go_on_after_cuts_and_from_an_earlier_try(
    cut_client: Cut, cutting: Relay, client: Client, tmp_path: Path
) -> None:
    cut, _ = cut_client
    version = upload_rows(client, "to-download", 50_000)
    client.dataset_versions.download(version, tmp_path / "whole.jsonl")
    whole = (tmp_path / "whole.jsonl").read_bytes()
    cutting.cut_after(answer_bytes=2 * MIB, times=2)
    cut.dataset_versions.download(version, tmp_path / "cut.jsonl")
    assert cutting.cuts == 2
    assert (tmp_path / "cut.jsonl").read_bytes() == whole
    begun = tmp_path / ".rlhf-partial" / client.dataset_versions.get(version).sha256
    begun.parent.mkdir()
    begun.write_bytes(whole[:MIB])
    told: list[int] = []
    client.dataset_versions.download(version, tmp_path / "more.jsonl", on_progress=lambda each: told.append(each.done))
    assert told[0] == MIB
    assert (tmp_path / "more.jsonl").read_bytes() == whole
    assert json.loads(whole.splitlines()[-1])["messages"][1]["content"] == "49999"


def test_a_create_whose_answer_is_lost_makes_one(cut_client: Cut, cutting: Relay, client: Client) -> None:
    """By the time an answer begins the gateway has passed the request on."""
    cut, _ = cut_client
    list(cut.datasets.list(limit=1))  # connected
    for number in range(5):
        cutting.cut_at_an_answer()
        made = cut.datasets.create(f"once-{number}", "messages")
        assert cutting.cuts == 1
        assert client.datasets.get(f"once-{number}") == made


def test_a_call_that_may_not_be_repeated_is_not(cut_client: Cut, cutting: Relay, client: Client) -> None:
    cut, _ = cut_client
    client.datasets.create("to-delete", "messages")
    list(cut.datasets.list(limit=1))
    cutting.cut_at_an_answer()
    with pytest.raises(Unavailable):
        cut.datasets.delete("to-delete")


def test_patience_ends(mesh: Mesh, cutting: Relay, new_job: Callable[..., str]) -> None:
    name = new_job(steps=40)
    with Client(f"127.0.0.1:{cutting.port}", home=mesh.home, patience_seconds=0.3) as client:
        cutting.cut_after(answer_bytes=1, times=10_000)
        with pytest.raises(Unavailable):
            list(client.training_jobs.events(name))
        cutting.cut_after(times=0)


def test_a_mesh_that_has_moved_is_found(mesh: Mesh, new_job: Callable[..., str], tmp_path: Path) -> None:
    """Its home names another socket after a restart."""
    home = tmp_path / "moved"
    tell(home, mesh.home / "nobody.sock")
    (home / "token").write_text((mesh.home / "token").read_text())
    name = new_job(steps=40)

    def move(text: str) -> None:
        tell(home, mesh.socket)

    with Client(home=home, on_lost=move) as client:
        assert len(list(client.training_jobs.metrics(name))) == 80
        assert client.endpoint.address == f"unix:{mesh.socket}"
