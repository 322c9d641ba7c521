"""Bytes on their way: cut off, sent twice, by two at once, too many, badly named, or never finished."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
from rlhf.dataset.v1 import dataset_pb2
from rlhf.dataset.v1 import dataset_service_pb2 as pb

from services.mesh.errors import (
    Aborted,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutOfRange,
    ResourceExhausted,
)
from services.mesh.rpc.client import call
from tests.integration.dataset.caller import Caller, State, eventually, lines, prompt_rows
from tests.integration.dataset.conftest import serving

DATA = lines(prompt_rows(20_000, padding=50))


class Slow:
    """A writer that sends piece by piece when told to."""

    def __init__(self, caller: Caller, upload: str) -> None:
        self._queue: asyncio.Queue[pb.WriteUploadRequest | None] = asyncio.Queue()
        self.call = caller.stub.WriteUpload(self._requests())
        self._name = upload

    def send(self, data: bytes, offset: int = 0) -> None:
        self._queue.put_nowait(pb.WriteUploadRequest(name=self._name, offset_bytes=offset, chunk=data))
        self._name, self._offset = "", 0

    def finish(self) -> None:
        self._queue.put_nowait(None)

    async def _requests(self) -> AsyncIterator[pb.WriteUploadRequest]:
        while (request := await self._queue.get()) is not None:
            yield request


def staged(caller: Caller, upload: dataset_pb2.Upload) -> int:
    path = caller.home / "uploads" / f"{upload.name.rpartition('/')[2]}.part"
    return path.stat().st_size if path.exists() else 0


async def test_goes_on_where_it_was_cut_off(caller: Caller) -> None:
    dataset = await caller.dataset()
    upload = await caller.announce(dataset.name, DATA)
    position = 0
    for _ in range(3):
        writer = Slow(caller, upload.name)
        for start in range(position, position + 500_000, 100_000):
            writer.send(DATA[start : start + 100_000], position if start == position else 0)
        position += 500_000
        await eventually(lambda position=position: staged(caller, upload) == position)
        writer.call.cancel()
        # Announcing it again finds it, with what has come: a client need not remember names.
        again = await caller.announce(dataset.name, DATA)
        assert (again.name, again.received_bytes) == (upload.name, position)
    done = await caller.write(upload.name, DATA, position)
    assert done.received_bytes == len(DATA)
    await caller.commit(upload.name)
    ended = await caller.ended(upload.name)
    assert ended.state == State.STATE_SUCCEEDED, ended


async def test_half_closing_early_answers_with_what_came(caller: Caller) -> None:
    upload = await caller.announce((await caller.dataset()).name, DATA)
    answer = await caller.write(upload.name, DATA[:1000])
    assert (answer.received_bytes, answer.state) == (1000, State.STATE_RECEIVING)
    assert answer.expire_time.ToNanoseconds() > upload.expire_time.ToNanoseconds()


@pytest.mark.parametrize("offset", [0, 999, 1001, 2**62])
async def test_wrong_offset_names_the_right_one(caller: Caller, offset: int) -> None:
    upload = await caller.announce((await caller.dataset()).name, DATA)
    await caller.write(upload.name, DATA[:1000])
    with pytest.raises(OutOfRange, match="go on at 1000") as refused:
        await call(caller.stub.WriteUpload(iter([pb.WriteUploadRequest(name=upload.name, offset_bytes=offset)])))
    assert refused.value.metadata == {"received_bytes": "1000"}


async def test_more_than_announced_is_refused(caller: Caller) -> None:
    upload = await caller.announce((await caller.dataset()).name, DATA[:1000])
    with pytest.raises(InvalidArgument, match="beyond the announced 1000 bytes"):
        await caller.write(upload.name, DATA[:1001], size=600)
    assert (await caller.get_upload(upload.name)).received_bytes == 600
    assert (await caller.write(upload.name, DATA[:1000], 600)).received_bytes == 1000


async def test_chunk_over_one_mebibyte_is_refused(caller: Caller) -> None:
    upload = await caller.announce((await caller.dataset()).name, DATA)
    with pytest.raises(InvalidArgument, match="at most 1048576"):
        await caller.write(upload.name, DATA, size=(1 << 20) + 1)


async def test_second_writer_is_turned_away(caller: Caller) -> None:
    upload = await caller.announce((await caller.dataset()).name, DATA)
    first = Slow(caller, upload.name)
    first.send(DATA[:1000])
    await eventually(lambda: staged(caller, upload) == 1000)
    with pytest.raises(Aborted) as refused:
        await caller.write(upload.name, DATA, 1000)
    assert refused.value.reason == "UPLOAD_BUSY"
    first.send(DATA[1000:2000])
    first.finish()
    assert (await call(first.call)).received_bytes == 2000


async def test_silent_writer_is_given_up_and_its_bytes_are_kept(own: dict[str, str]) -> None:
    async with serving({**own, "RLHF_DATASET_WRITE_IDLE_SECONDS": "0.3"}) as caller:
        upload = await caller.announce((await caller.dataset()).name, DATA)
        writer = Slow(caller, upload.name)
        writer.send(DATA[:1000])
        with pytest.raises(DeadlineExceeded):
            await call(writer.call)
        assert (await caller.write(upload.name, DATA[:2000], 1000)).received_bytes == 2000


async def test_one_call_writes_one_upload(caller: Caller) -> None:
    dataset = await caller.dataset()
    one, other = await caller.announce(dataset.name, DATA), await caller.announce(dataset.name, DATA[:100])
    writer = Slow(caller, one.name)
    writer.send(DATA[:10])
    writer._name = other.name
    writer.send(DATA[10:20])
    with pytest.raises(InvalidArgument, match="one call writes one upload"):
        await call(writer.call)
    assert (await caller.get_upload(other.name)).received_bytes == 0


async def test_same_file_is_found_only_while_it_receives(caller: Caller) -> None:
    dataset = await caller.dataset()
    data = lines(prompt_rows(2))
    first = await caller.announce(dataset.name, data)
    assert (await caller.announce(dataset.name, data)).name == first.name
    assert (await caller.announce(dataset.name, data, "other.jsonl")).name != first.name
    assert (await caller.announce(dataset.name, data, sha256="0" * 64)).name != first.name
    assert (await caller.announce((await caller.dataset()).name, data)).name != first.name
    await caller.write(first.name, data)
    await caller.commit(first.name)
    assert (await caller.announce(dataset.name, data)).name != first.name


@pytest.mark.parametrize(
    "file_name",
    [
        "",
        "rows",
        "rows.exe",
        "rows.jsonl.bz2",
        "../rows.jsonl",
        "/etc/rows.jsonl",
        "a/rows.jsonl",
        "a\\rows.jsonl",
        ".jsonl",
        "..",
        "rows\0.jsonl",
        "rows\n.jsonl",
        "\u202erows.jsonl",
        "x" * 256 + ".jsonl",
    ],
)
async def test_hostile_file_name_is_refused(caller: Caller, file_name: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        await caller.announce((await caller.dataset()).name, DATA, file_name)
    assert [violation.field for violation in refused.value.violations] == ["upload.file_name"]


async def test_all_violations_come_at_once(caller: Caller) -> None:
    upload = dataset_pb2.Upload(file_name="x", size_bytes=0, sha256="ABC")
    with pytest.raises(InvalidArgument) as refused:
        await call(caller.stub.CreateUpload(pb.CreateUploadRequest(parent="nothing", upload=upload)))
    fields = [violation.field for violation in refused.value.violations]
    assert fields == ["parent", "upload.file_name", "upload.size_bytes", "upload.sha256"]


async def test_upload_beyond_the_limit_or_the_disk_is_refused_at_once(own: dict[str, str]) -> None:
    async with serving({**own, "RLHF_DATASET_MAX_UPLOAD_BYTES": str(1 << 50)}) as caller:
        dataset = (await caller.dataset()).name
        for size, error in ((1 << 50) + 1, InvalidArgument), (1 << 50, ResourceExhausted):
            upload = dataset_pb2.Upload(file_name="a.csv", size_bytes=size, sha256="0" * 64)
            with pytest.raises(error):
                await call(caller.stub.CreateUpload(pb.CreateUploadRequest(parent=dataset, upload=upload)))
        page = await call(caller.stub.ListUploads(pb.ListUploadsRequest(parent=dataset)))
        assert not page.uploads


@pytest.mark.parametrize(
    "name",
    [
        "",
        "projects/default/datasets/none/uploads/../../x",
        "projects/default/datasets/none/uploads/a%2Fb",
        "projects/default/datasets/none/uploads/a/b",
        "projects/default/datasets/none/uploads/\0",
        "projects/default/datasets/none",
    ],
)
async def test_hostile_resource_name_is_refused(caller: Caller, name: str) -> None:
    for attempt in (
        caller.stub.GetUpload(pb.GetUploadRequest(name=name)),
        caller.stub.CommitUpload(pb.CommitUploadRequest(name=name)),
        caller.stub.DeleteUpload(pb.DeleteUploadRequest(name=name)),
        caller.stub.WriteUpload(iter([pb.WriteUploadRequest(name=name, chunk=b"x")])),
    ):
        with pytest.raises(InvalidArgument):
            await call(attempt)


async def test_unknown_names_are_not_found(caller: Caller) -> None:
    name = "projects/default/datasets/none/uploads/none"
    for attempt in (
        caller.stub.GetUpload(pb.GetUploadRequest(name=name)),
        caller.stub.CommitUpload(pb.CommitUploadRequest(name=name)),
        caller.stub.DeleteUpload(pb.DeleteUploadRequest(name=name)),
        caller.stub.WriteUpload(iter([pb.WriteUploadRequest(name=name, chunk=b"x")])),
        caller.stub.ListUploads(pb.ListUploadsRequest(parent="projects/default/datasets/none")),
    ):
        with pytest.raises(NotFound):
            await call(attempt)


async def test_nobody_writes_without_the_token(caller: Caller, shared: dict[str, str]) -> None:
    upload = await caller.announce((await caller.dataset()).name, DATA)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await caller.stub.WriteUpload(
            iter([pb.WriteUploadRequest(name=upload.name, chunk=b"x")]), metadata=(("authorization", "Bearer no"),)
        )
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert staged(caller, upload) == 0


async def test_deleting_while_a_writer_writes_ends_the_writer(caller: Caller) -> None:
    upload = await caller.announce((await caller.dataset()).name, DATA)
    writer = Slow(caller, upload.name)
    writer.send(DATA[:1000])
    await eventually(lambda: staged(caller, upload) == 1000)
    await call(caller.stub.DeleteUpload(pb.DeleteUploadRequest(name=upload.name)))
    writer.finish()
    with pytest.raises(NotFound):
        await call(writer.call)
    assert staged(caller, upload) == 0


async def test_committed_upload_cannot_be_deleted_while_it_waits(own: dict[str, str]) -> None:
    async with serving(own) as caller:  # without a worker
        upload = await caller.announce((await caller.dataset()).name, DATA)
        await caller.write(upload.name, DATA)
        await caller.commit(upload.name)
        with pytest.raises(FailedPrecondition, match="wait until it ends"):
            await call(caller.stub.DeleteUpload(pb.DeleteUploadRequest(name=upload.name)))
