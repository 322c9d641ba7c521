"""What the trainer asks the dataset service: facts of a version, and its rows."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path
from typing import BinaryIO

import grpc
from google.protobuf import json_format
from rlhf.dataset.v1 import dataset_service_pb2
from rlhf.dataset.v1.dataset_service_pb2_grpc import DatasetServiceStub

from services.mesh.errors import PlatformError
from services.mesh.rpc import client
from services.trainer.entities import DatasetVersion


class DatasetClient:
    """A client of DatasetService over one channel. An async context manager."""

    def __init__(self, target: str, token: str) -> None:
        self._target, self._token = target, token
        self._channel: grpc.aio.Channel | None = None

    async def __aenter__(self) -> DatasetClient:
        self._channel = client.connect(self._target, self._token)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._channel is not None:
            await self._channel.close()

    async def version(self, name: str) -> DatasetVersion:
        """Facts of a version; `versions/latest` is resolved. Raises what the service raises."""
        request = dataset_service_pb2.GetDatasetVersionRequest(name=name)
        version = await client.call(self._stub().GetDatasetVersion(request))
        statistics = json_format.MessageToDict(version.statistics)
        answered = statistics.get("rows_with_answer")
        median = (statistics.get("row_lengths") or {}).get("p50")
        answered_row_count = int(answered) if answered is not None and version.format == "prompt" else None
        return DatasetVersion(
            name=version.name,
            format=version.format,
            row_count=version.row_count,
            size_bytes=version.size_bytes,
            answered_row_count=answered_row_count,
            sha256=version.sha256,
            median_characters=int(median) if median is not None else None,
        )

    async def download(self, name: str, size_bytes: int, target: Path) -> None:
        """Write the canonical rows to `target`, going on after a broken connection. Raises what the service raises."""
        if await asyncio.to_thread(target.exists):
            return
        partial = target.with_suffix(".partial")
        partial.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            failures = 0
            while file.tell() < size_bytes:
                before = file.tell()
                try:
                    await self._write_from(name, file.tell(), file)
                except PlatformError as error:
                    failures = 1 if file.tell() > before else failures + 1
                    if not client.is_transient(error) or failures > 5:
                        raise
                    await asyncio.sleep(0.2 * failures)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(target)

    async def part(self, name: str, offset: int, size: int) -> bytes:
        """At most `size` bytes of the canonical rows from `offset` on. Raises what the service raises."""
        found = bytearray()
        request = dataset_service_pb2.DownloadDatasetRequest(name=name, offset_bytes=offset)
        async with contextlib.aclosing(client.stream(self._stub().DownloadDataset(request))) as replies:
            async for reply in replies:
                found += reply.chunk
                if len(found) >= size:
                    break
        return bytes(found[:size])

    async def _write_from(self, name: str, offset: int, file: BinaryIO) -> None:
        request = dataset_service_pb2.DownloadDatasetRequest(name=name, offset_bytes=offset)
        async for reply in client.stream(self._stub().DownloadDataset(request)):
            file.write(reply.chunk)

    def _stub(self) -> DatasetServiceStub:
        assert self._channel is not None, "enter the client first"
        return DatasetServiceStub(self._channel)
