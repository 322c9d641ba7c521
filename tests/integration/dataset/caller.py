"""What tests ask of the service, in few words."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import itertools
import json
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import grpc
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import zstandard
from google.protobuf import json_format
from rlhf.dataset.v1 import dataset_pb2
from rlhf.dataset.v1 import dataset_service_pb2 as pb
from rlhf.dataset.v1.dataset_service_pb2_grpc import DatasetServiceStub

from services.mesh.rpc.client import call, stream

State = dataset_pb2.Upload.State
ENDED = (State.STATE_SUCCEEDED, State.STATE_FAILED)
PIECE_BYTES = 256 * 1024
_numbers = itertools.count(1)


def prompt_rows(count: int, start: int = 0, padding: int = 0) -> list[dict[str, Any]]:
    """Rows of format `prompt` in its own spelling."""
    return [
        {
            "prompt": [{"role": "user", "content": f"What is {i} plus {i}?" + " " + "x" * padding}],
            "answer": str(2 * i),
        }
        for i in range(start, start + count)
    ]


def lines(rows: Iterable[Any]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def canonical(rows: Iterable[Any]) -> bytes:
    """As a download gives rows that were written in canonical order of fields."""
    return b"".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode() + b"\n" for row in rows)


def packed(rows: Sequence[dict[str, Any]], file_name: str) -> bytes:
    """`rows` in the container and compression that the name says."""
    container, _, compression = file_name.partition(".")[2].partition(".")
    if container == "jsonl":
        data = lines(rows)
    elif container == "json":
        data = json.dumps(rows).encode()
    else:
        flat = pa.Table.from_pylist([{"prompt": r["prompt"][0]["content"], "answer": r["answer"]} for r in rows])
        buffer = io.BytesIO()
        if container == "csv":
            pyarrow.csv.write_csv(flat, buffer)
        else:
            pyarrow.parquet.write_table(flat, buffer)
        data = buffer.getvalue()
    compress = {"": bytes, "gz": gzip.compress, "zst": zstandard.ZstdCompressor().compress}[compression]
    return compress(data)


def pieces(name: str, data: bytes, offset: int = 0, size: int = PIECE_BYTES) -> Iterable[pb.WriteUploadRequest]:
    yield pb.WriteUploadRequest(name=name, offset_bytes=offset, chunk=data[offset : offset + size])
    for start in range(offset + size, len(data), size):
        yield pb.WriteUploadRequest(chunk=data[start : start + size])


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def eventually(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    """Wait until it holds."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in another process
            await asyncio.sleep(0.02)


class Caller:
    def __init__(self, channel: grpc.aio.Channel, home: Path, target: str) -> None:
        self.channel = channel
        self.home = home
        self.target = target
        self.stub: Any = DatasetServiceStub(channel)

    async def dataset(self, format: str = "prompt", **fields: Any) -> dataset_pb2.Dataset:
        """A new one with an id of its own."""
        request = pb.CreateDatasetRequest(
            parent="projects/default",
            dataset=dataset_pb2.Dataset(format=format, **fields),
            dataset_id=f"d{next(_numbers)}",
        )
        return await call(self.stub.CreateDataset(request))

    async def announce(
        self,
        dataset: str,
        data: bytes,
        file_name: str = "rows.jsonl",
        sha256: str | None = None,
        options: dataset_pb2.Upload | None = None,
    ) -> dataset_pb2.Upload:
        """`options` are the fields of an Upload that say how its rows are read."""
        digest = sha256 or hashlib.sha256(data).hexdigest()
        upload = dataset_pb2.Upload(file_name=file_name, size_bytes=len(data), sha256=digest)
        upload.MergeFrom(options or dataset_pb2.Upload())
        return await call(self.stub.CreateUpload(pb.CreateUploadRequest(parent=dataset, upload=upload)))

    async def write(self, upload: str, data: bytes, offset: int = 0, size: int = PIECE_BYTES) -> dataset_pb2.Upload:
        return await call(self.stub.WriteUpload(pieces(upload, data, offset, size)))

    async def commit(self, upload: str) -> dataset_pb2.Upload:
        return await call(self.stub.CommitUpload(pb.CommitUploadRequest(name=upload)))

    async def get_upload(self, name: str) -> dataset_pb2.Upload:
        return await call(self.stub.GetUpload(pb.GetUploadRequest(name=name)))

    async def ended(self, upload: str) -> dataset_pb2.Upload:
        """Watch until it has ended."""
        last = None
        async for reply in stream(self.stub.StreamUploadEvents(pb.StreamUploadEventsRequest(name=upload))):
            last = reply.upload if reply.HasField("upload") else last
        assert last is not None and last.state in ENDED
        return last

    async def upload(
        self,
        dataset: str,
        data: bytes,
        file_name: str = "rows.jsonl",
        sha256: str | None = None,
        options: dataset_pb2.Upload | None = None,
    ) -> dataset_pb2.Upload:
        """Announce, write, commit, wait."""
        upload = await self.announce(dataset, data, file_name, sha256, options)
        await self.write(upload.name, data)
        await self.commit(upload.name)
        return await self.ended(upload.name)

    async def version(self, name: str) -> dataset_pb2.DatasetVersion:
        return await call(self.stub.GetDatasetVersion(pb.GetDatasetVersionRequest(name=name)))

    async def filled(self, rows: Sequence[Any], **fields: Any) -> dataset_pb2.DatasetVersion:
        """A version of a new dataset that holds `rows`."""
        dataset = await self.dataset(**fields)
        upload = await self.upload(dataset.name, lines(rows))
        assert upload.state == State.STATE_SUCCEEDED, upload
        return await self.version(upload.dataset_version)

    async def download(self, version: str, offset: int = 0) -> bytes:
        """Checks on the way that every piece says where it stands."""
        found = bytearray()
        request = pb.DownloadDatasetRequest(name=version, offset_bytes=offset)
        async for reply in stream(self.stub.DownloadDataset(request)):
            assert reply.offset_bytes == offset + len(found)
            assert 0 < len(reply.chunk) <= 1 << 20
            found += reply.chunk
        return bytes(found)

    async def rows(self, version: str, page_size: int = 0, **fields: Any) -> AsyncIterator[list[tuple[int, Any]]]:
        """Page by page: (row index, row)."""
        token = ""
        while True:
            request = pb.ListRowsRequest(parent=version, page_size=page_size, page_token=token, **fields)
            page = await call(self.stub.ListRows(request))
            yield [(row.row_index, json_format.MessageToDict(row.value)) for row in page.rows]
            token = page.next_page_token
            if not token:
                return
