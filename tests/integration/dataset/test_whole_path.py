"""A file comes in, its rows go out: every container, every compression, every way to be wrong."""

from __future__ import annotations

import gzip
import hashlib
import json

import pytest
from rlhf.dataset.v1 import dataset_pb2
from rlhf.dataset.v1 import dataset_service_pb2 as pb

from services.mesh.errors import FailedPrecondition
from services.mesh.rpc.client import call, stream
from tests.integration.dataset.caller import Caller, State, canonical, eventually, lines, packed, prompt_rows

FILES = [f"rows.{kind}{packing}" for kind in ("jsonl", "json", "csv", "parquet") for packing in ("", ".gz", ".zst")]


@pytest.mark.parametrize("file_name", FILES)
async def test_same_rows_come_out_of_every_container(caller: Caller, file_name: str) -> None:
    rows = prompt_rows(300)
    data = packed(rows, file_name)
    dataset = await caller.dataset()
    upload = await caller.upload(dataset.name, data, file_name)
    assert upload.state == State.STATE_SUCCEEDED, upload
    assert upload.received_bytes == len(data)
    assert upload.validated_row_count == 300
    assert (upload.report.row_count, upload.report.invalid_row_count) == (300, 0)
    assert sum(upload.report.row_count_by_spelling.values()) == 300

    version = await caller.version(upload.dataset_version)
    assert version.name == f"{dataset.name}/versions/1"
    assert version.row_count == 300
    assert version.source_file_name == file_name
    assert version.source_sha256 == hashlib.sha256(data).hexdigest()
    assert version.statistics["rows"] == 300
    content = await caller.download(version.name)
    assert content == canonical(rows)
    assert version.size_bytes == len(content)
    # The name of the content does not depend on how it came.
    chunk = hashlib.sha256(content).hexdigest()
    assert version.sha256 == hashlib.sha256(f"prompt\n{chunk}\n".encode()).hexdigest()
    assert (await call(caller.stub.GetDataset(pb.GetDatasetRequest(name=dataset.name)))).latest_version == version.name


async def test_nothing_is_left_of_a_file_but_its_blobs(caller: Caller) -> None:
    rows = prompt_rows(10)
    data = lines(rows)
    upload = await caller.upload((await caller.dataset()).name, data)
    uid = upload.name.rpartition("/")[2]
    source = hashlib.sha256(data).hexdigest()
    assert (caller.home / "artifacts" / source[:2] / source).read_bytes() == data
    await eventually(lambda: not list((caller.home / "uploads").glob(f"{uid}*")))


async def test_findings_are_told_and_make_no_version(caller: Caller) -> None:
    rows: list[object] = [*prompt_rows(5), {"prompt": [{"role": "king", "content": "x"}], "answer": "1"}, ["no row"]]
    dataset = await caller.dataset()
    upload = await caller.upload(dataset.name, lines(rows))
    assert upload.state == State.STATE_FAILED
    assert upload.error.reason == "INVALID_ROWS"
    assert "row 6" in upload.error.message
    report = upload.report
    assert (report.row_count, report.invalid_row_count, report.finding_count) == (7, 2, 2)
    assert [(f.row, f.line, f.field, f.reason) for f in report.findings] == [
        (6, 6, "prompt[0].role", "UNKNOWN_ROLE"),
        (7, 7, "", "NOT_AN_OBJECT"),
    ]
    assert report.finding_count_by_reason == {"UNKNOWN_ROLE": 1, "NOT_AN_OBJECT": 1}
    assert not upload.dataset_version
    page = await call(caller.stub.ListDatasetVersions(pb.ListDatasetVersionsRequest(parent=dataset.name)))
    assert not page.dataset_versions


async def test_three_findings_of_a_reason_are_kept_and_all_are_counted(caller: Caller) -> None:
    upload = await caller.upload((await caller.dataset()).name, lines([{"nothing": 1}] * 250))
    assert len(upload.report.findings) == 3
    assert upload.report.finding_count == upload.report.invalid_row_count == 250


HOSTILE = "\0\ud800'; DROP TABLE versions; --\u202e"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b'{"' + b"k" * 100_000 + b'": 1}\n', id="a key of 100 kB"),
        pytest.param(json.dumps({HOSTILE: 1}).encode() + b"\n", id="a key that PostgreSQL cannot hold"),
        pytest.param(json.dumps({"prompt": HOSTILE, "answer": HOSTILE}).encode() + b"\n", id="such text"),
        pytest.param(b"[" * 1_000_000, id="nested a million deep"),
        pytest.param(b'{"prompt": "a", "answer": "b", "n": ' + b"9" * 5000 + b"}\n", id="a number of 5000 digits"),
        pytest.param(b"\xff\xfe\x00\x01" * 100, id="not text"),
        pytest.param(b"\n \n\n", id="blank"),
    ],
)
async def test_hostile_file_fails_with_a_reason(caller: Caller, data: bytes) -> None:
    upload = await caller.upload((await caller.dataset()).name, data)
    assert upload.state == State.STATE_FAILED
    assert upload.error.reason not in ("", "INTERNAL", "READER_DIED")
    assert upload.error.message


@pytest.mark.parametrize("file_name", ["bomb.jsonl.gz", "bomb.parquet.gz"])
async def test_bomb_is_refused(caller: Caller, file_name: str) -> None:
    """300 MB of zeros in 300 kB."""
    start = b"PAR1" if "parquet" in file_name else b'{"prompt": "'
    upload = await caller.upload((await caller.dataset()).name, gzip.compress(start + b"0" * 300_000_000), file_name)
    assert upload.state == State.STATE_FAILED
    assert upload.error.reason in ("COMPRESSION_RATIO", "ROW_TOO_LONG")


async def test_wrong_hash_is_found(caller: Caller) -> None:
    data = lines(prompt_rows(3))
    upload = await caller.upload((await caller.dataset()).name, data, sha256=hashlib.sha256(b"other").hexdigest())
    assert upload.state == State.STATE_FAILED
    assert upload.error.reason == "WRONG_HASH"
    assert hashlib.sha256(data).hexdigest() in upload.error.message


async def test_name_that_lies_is_found(caller: Caller) -> None:
    upload = await caller.upload((await caller.dataset()).name, gzip.compress(b"{}"), "rows.jsonl")
    assert upload.error.reason == "NAME_AND_CONTENT_DIFFER"


async def test_commit_wants_all_bytes_and_can_be_repeated(caller: Caller) -> None:
    data = lines(prompt_rows(3))
    upload = await caller.announce((await caller.dataset()).name, data)
    await caller.write(upload.name, data[:50])
    with pytest.raises(FailedPrecondition) as refused:
        await caller.commit(upload.name)
    assert refused.value.reason == "UPLOAD_INCOMPLETE"
    assert refused.value.metadata == {"received_bytes": "50", "expected_bytes": str(len(data))}
    await caller.write(upload.name, data, 50)
    first = await caller.commit(upload.name)
    assert first.state == State.STATE_VALIDATING
    done = await caller.ended(upload.name)
    assert await caller.commit(upload.name) == done
    with pytest.raises(FailedPrecondition, match="settled"):
        await caller.write(upload.name, data, len(data))


async def test_watch_tells_of_the_way_and_ends(caller: Caller) -> None:
    data = lines(prompt_rows(2000))
    upload = await caller.announce((await caller.dataset()).name, data)
    seen: list[tuple[int, int]] = []
    heartbeats = 0
    async for reply in stream(caller.stub.StreamUploadEvents(pb.StreamUploadEventsRequest(name=upload.name))):
        if not reply.HasField("upload"):
            heartbeats += 1
            if heartbeats == 1:
                await caller.write(upload.name, data)
                await caller.commit(upload.name)
            continue
        seen.append((reply.upload.state, reply.upload.received_bytes))
    assert heartbeats >= 1
    assert seen[0] == (State.STATE_RECEIVING, 0)
    assert (State.STATE_VALIDATING, len(data)) in seen
    assert seen[-1] == (State.STATE_SUCCEEDED, len(data))
    assert [state for state, _ in seen] == sorted(state for state, _ in seen)


async def test_uploads_are_listed_newest_first_and_deleted(caller: Caller) -> None:
    dataset = await caller.dataset()
    made = [await caller.announce(dataset.name, lines(prompt_rows(i))) for i in range(1, 4)]
    await caller.write(made[0].name, lines(prompt_rows(1)))

    async def listed() -> list[dataset_pb2.Upload]:
        request = pb.ListUploadsRequest(parent=dataset.name, page_size=2)
        first = await call(caller.stub.ListUploads(request))
        assert len(first.uploads) == min(2, len(made))
        if not first.next_page_token:
            return list(first.uploads)
        request.page_token = first.next_page_token
        second = await call(caller.stub.ListUploads(request))
        assert not second.next_page_token
        return [*first.uploads, *second.uploads]

    assert [upload.name for upload in await listed()] == [upload.name for upload in reversed(made)]
    assert (await listed())[-1].received_bytes == len(lines(prompt_rows(1)))
    gone = made.pop(0)
    await call(caller.stub.DeleteUpload(pb.DeleteUploadRequest(name=gone.name)))
    assert [upload.name for upload in await listed()] == [upload.name for upload in reversed(made)]
    assert not (caller.home / "uploads" / f"{gone.name.rpartition('/')[2]}.part").exists()


async def test_formats_are_listed(caller: Caller) -> None:
    reply = await call(caller.stub.ListFormats(pb.ListFormatsRequest()))
    formats = {entry.entry.id: entry for entry in reply.formats}
    assert {"messages", "preference", "prompt"} <= formats.keys()
    assert "openai" in formats["messages"].spellings
    assert formats["prompt"].entry.summary
    assert formats["prompt"].entry.description.startswith(formats["prompt"].entry.summary)
    assert "PromptRow" in json.dumps(dict(formats["prompt"].row_schema["$defs"]), default=str)
