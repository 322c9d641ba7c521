"""Versions: numbered without gaps, equal ones once, paged and downloaded from anywhere, and never wrong unnoticed."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import pytest
from rlhf.dataset.v1 import dataset_pb2
from rlhf.dataset.v1 import dataset_service_pb2 as pb

from services.dataset.reading.metadata import MAX_DEPTH
from services.mesh.errors import DataLoss, InvalidArgument, NotFound, OutOfRange
from services.mesh.rpc.client import call, stream
from tests.integration.dataset.caller import Caller, State, canonical, lines, prompt_rows

# Some 9 MB: three chunks.
ROWS = prompt_rows(3000, padding=3000)


@pytest.fixture
async def version(caller: Caller) -> dataset_pb2.DatasetVersion:
    return await caller.filled(ROWS)


def blobs(caller: Caller, version: dataset_pb2.DatasetVersion) -> list[Path]:
    """The stored chunks of ROWS, found by what they begin with, in order."""
    content = canonical(ROWS)
    paths = [path for path in (caller.home / "artifacts").glob("*/*") if path.stat().st_size > 100_000]
    found = {content.index(data): path for path in paths if (data := path.read_bytes()) in content}
    return [found[offset] for offset in sorted(found)]


async def test_versions_count_and_equal_content_gives_the_latest(caller: Caller) -> None:
    dataset = await caller.dataset()
    one, two = prompt_rows(5), prompt_rows(6)
    made = []
    for rows, file_name in ((one, "a.jsonl"), (one, "b.jsonl"), (two, "c.jsonl"), (one, "d.jsonl")):
        upload = await caller.upload(dataset.name, lines(rows), file_name)
        assert upload.state == State.STATE_SUCCEEDED
        made.append(upload.dataset_version.rpartition("/")[2])
    assert made == ["1", "1", "2", "3"]
    request = pb.ListDatasetVersionsRequest(parent=dataset.name, page_size=2)
    first = await call(caller.stub.ListDatasetVersions(request))
    assert [version.name.rpartition("/")[2] for version in first.dataset_versions] == ["3", "2"]
    request.page_token = first.next_page_token
    second = await call(caller.stub.ListDatasetVersions(request))
    assert [version.name.rpartition("/")[2] for version in second.dataset_versions] == ["1"]
    assert not second.next_page_token
    assert second.dataset_versions[0].sha256 == first.dataset_versions[0].sha256
    latest = await caller.version(f"{dataset.name}/versions/latest")
    assert latest == first.dataset_versions[0]


async def test_versions_of_concurrent_commits_have_no_gap(caller: Caller) -> None:
    dataset = await caller.dataset()
    files = [lines(prompt_rows(3, start=10 * i)) for i in range(8)]
    ended = await asyncio.gather(*(caller.upload(dataset.name, data) for data in files))
    assert {upload.state for upload in ended} == {State.STATE_SUCCEEDED}
    numbers = sorted(int(upload.dataset_version.rpartition("/")[2]) for upload in ended)
    assert numbers == list(range(1, 9))
    for upload, data in zip(ended, files, strict=True):
        rows = [json.loads(line) for line in data.splitlines()]
        assert await caller.download(upload.dataset_version) == canonical(rows)


async def test_rows_come_in_order_over_pages_and_chunks(caller: Caller, version: dataset_pb2.DatasetVersion) -> None:
    assert len(blobs(caller, version)) == 3
    seen: list[tuple[int, Any]] = []
    async for page in caller.rows(version.name, 1000):
        size = sum(len(canonical([row])) for _, row in page)
        # 1000 of these rows are 3 MB: a page ends before that.
        assert size <= 2 << 20
        seen += page
    assert seen == list(enumerate(ROWS))


@pytest.mark.parametrize("start", [0, 1, 1399, 1400, 2999])
async def test_rows_start_anywhere(caller: Caller, version: dataset_pb2.DatasetVersion, start: int) -> None:
    async for page in caller.rows(version.name, 3, first_row_index=start):
        assert page == [(i, ROWS[i]) for i in range(start, min(start + 3, 3000))]
        break


async def test_rows_beyond_the_end_are_none(caller: Caller, version: dataset_pb2.DatasetVersion) -> None:
    for start in (3000, 2**62):
        assert [page async for page in caller.rows(version.name, first_row_index=start)] == [[]]


async def test_page_of_rows_keeps_at_least_one(caller: Caller) -> None:
    big = prompt_rows(2, padding=3 << 20)
    version = await caller.filled(big)
    pages = [page async for page in caller.rows(version.name)]
    assert pages == [[(0, big[0])], [(1, big[1])]]


async def test_rows_of_odd_numbers_and_depth_are_listed(caller: Caller) -> None:
    deep: Any = 1
    for _ in range(MAX_DEPTH - 1):
        deep = {"d": deep}
    odd = {"big": 2**64, "fraction": 1e308, "text": "\u2028\U0001f600", "none": [None], "deep": deep}
    dataset = await caller.dataset()
    upload = await caller.upload(dataset.name, lines([{**prompt_rows(1)[0], **odd}]))
    assert upload.state == State.STATE_SUCCEEDED, upload
    [page] = [page async for page in caller.rows(upload.dataset_version)]
    assert page[0][1]["metadata"] == json.loads(await caller.download(upload.dataset_version))["metadata"]


async def test_pages_of_latest_stay_with_their_version(caller: Caller) -> None:
    first = await caller.filled(prompt_rows(4))
    dataset = first.name.rpartition("/versions/")[0]
    pages = caller.rows(f"{dataset}/versions/latest", 2)
    start = await anext(pages)
    await caller.upload(dataset, lines(prompt_rows(4, start=100)))
    assert start + await anext(pages) == list(enumerate(prompt_rows(4)))


@pytest.mark.parametrize("offset", [0, 1, 4_000_000, 5_000_000])
async def test_download_goes_on_at_any_byte(caller: Caller, version: dataset_pb2.DatasetVersion, offset: int) -> None:
    content = canonical(ROWS)
    assert version.size_bytes == len(content)
    assert await caller.download(version.name, offset) == content[offset:]


async def test_download_at_and_beyond_the_end(caller: Caller) -> None:
    version = await caller.filled(prompt_rows(3))
    assert await caller.download(version.name, version.size_bytes - 1) == b"\n"
    assert await caller.download(version.name, version.size_bytes) == b""
    with pytest.raises(OutOfRange) as refused:
        await caller.download(version.name, version.size_bytes + 1)
    assert refused.value.metadata == {"size_bytes": str(version.size_bytes)}
    with pytest.raises(InvalidArgument):
        await caller.download(version.name, -1)


async def test_flipped_byte_is_data_loss_and_never_a_wrong_row(caller: Caller) -> None:
    rows = prompt_rows(3000, start=7_000_000, padding=3000)
    version = await caller.filled(rows)
    content = canonical(rows)
    paths = [path for path in (caller.home / "artifacts").glob("*/*") if 100_000 < path.stat().st_size < 5 << 20]
    chunks = sorted((content.index(d), path) for path in paths if (d := path.read_bytes()) in content)
    start, path = chunks[1]
    spoilt = bytearray(path.read_bytes())
    spoilt[1234] ^= 1
    path.write_bytes(spoilt)
    received = b""
    with pytest.raises(DataLoss):
        async for reply in stream(caller.stub.DownloadDataset(pb.DownloadDatasetRequest(name=version.name))):
            received += reply.chunk
    assert received == content[:start]
    with pytest.raises(DataLoss):
        [page async for page in caller.rows(version.name, 1000)]
    path.unlink()
    with pytest.raises(DataLoss):
        await caller.download(version.name, start + 10)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("projects/default/datasets/none/versions/1", NotFound),
        ("projects/default/datasets/none/versions/latest", NotFound),
        ("{dataset}/versions/1", NotFound),
        ("{dataset}/versions/latest", NotFound),
        ("{dataset}/versions/0", InvalidArgument),
        ("{dataset}/versions/-1", InvalidArgument),
        ("{dataset}/versions/one", InvalidArgument),
        ("{dataset}/versions/999999999999999999", NotFound),
        ("{dataset}/versions/9999999999999999999", InvalidArgument),
        ("{dataset}", InvalidArgument),
        ("", InvalidArgument),
    ],
)
async def test_unknown_and_hostile_version_names(caller: Caller, name: str, error: type[Exception]) -> None:
    name = name.replace("{dataset}", (await caller.dataset()).name)
    with pytest.raises(error):
        await caller.version(name)
    with pytest.raises(error):
        await caller.download(name)
    with pytest.raises(error):
        await call(caller.stub.ListRows(pb.ListRowsRequest(parent=name)))


async def test_page_tokens_are_not_believed(caller: Caller) -> None:

    version = await caller.filled(prompt_rows(5))
    request = pb.ListRowsRequest(parent=version.name, page_size=2)
    token = (await call(caller.stub.ListRows(request))).next_page_token
    padded = token + "=" * (-len(token) % 4)
    made_with = json.loads(base64.urlsafe_b64decode(padded))[0]
    for key in (["x", 1], [1], [1, -1], [1, 2, 3], [0, 0], [2**80, 0]):
        forged = base64.urlsafe_b64encode(json.dumps([made_with, *key]).encode()).decode().rstrip("=")
        with pytest.raises((InvalidArgument, NotFound)):
            await call(caller.stub.ListRows(pb.ListRowsRequest(parent=version.name, page_size=2, page_token=forged)))
    with pytest.raises(InvalidArgument):
        await call(caller.stub.ListRows(pb.ListRowsRequest(parent=version.name, page_size=-1)))
    with pytest.raises(InvalidArgument):
        request = pb.ListRowsRequest(parent=version.name, page_token=token, first_row_index=3)
        await call(caller.stub.ListRows(request))
    with pytest.raises(InvalidArgument):
        await call(caller.stub.ListRows(pb.ListRowsRequest(parent=version.name, first_row_index=-1)))
