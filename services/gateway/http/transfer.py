"""Bytes over HTTP, the only routes that are written by hand: uploads in (`upload`), dataset versions and files of
checkpoints and models out.

A download holds at most a few chunks: a slow client slows the service down.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass
from rlhf.dataset.v1 import dataset_service_pb2 as dataset
from rlhf.dataset.v1 import dataset_service_pb2_grpc as dataset_grpc
from starlette.responses import Response, StreamingResponse

from services.gateway.http import ranges
from services.gateway.http.problems import HttpError
from services.gateway.http.request import IDLE_SECONDS, Call, Endpoint
from services.gateway.http.upload import UploadEndpoint
from services.gateway.transcoding.transcoder import file_downloads, fill_path, fill_query
from services.gateway.upstreams import Upstream
from services.mesh import catalog
from services.mesh.errors import DataLoss, DeadlineExceeded, InvalidArgument, NotFound, OutOfRange, Violation

_UNSAFE_IN_FILE_NAME = re.compile(r"[^A-Za-z0-9._-]+")


def transfer_routes(upstream: Upstream) -> Iterator[tuple[str, str, Endpoint]]:
    """HTTP method, path template and endpoint of what this service takes and gives."""
    if upstream.name == "dataset":
        upload = UploadEndpoint(upstream)
        for method in ("PUT", "POST"):
            yield method, "/v1/{name=projects/*/datasets/*/uploads/*}:write", upload
        yield "GET", "/v1/{name=projects/*/datasets/*/versions/*}:download", DatasetDownload(upstream)
    for download, path in file_downloads(method for service in upstream.descriptors for method in service.methods):
        yield "GET", path, FileDownload(upstream, download)


@dataclass(frozen=True)
class Content:
    """What is sent. `sha256` names it: the same hash, the same bytes."""

    size_bytes: int
    sha256: str
    file_name: str
    media_type: str

    @property
    def etag(self) -> str:
        return f'"{self.sha256}"'

    def headers(self) -> dict[str, str]:
        plain = _UNSAFE_IN_FILE_NAME.sub("_", self.file_name).lstrip(".") or "download"
        exact = quote("".join(c for c in self.file_name if c.isprintable()), safe="", errors="replace")
        disposition = f"attachment; filename=\"{plain}\"; filename*=UTF-8''{exact}"
        return {"ETag": self.etag, "Accept-Ranges": "bytes", "Content-Disposition": disposition}


class DatasetDownload:
    """The canonical rows of a version as JSON lines."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._stub: Any = dataset_grpc.DatasetServiceStub(upstream.channel)

    async def __call__(self, call: Call, captured: dict[str, str]) -> Response:
        request = dataset.GetDatasetVersionRequest()
        if violations := fill_query(request, call.query, {"name": "in the path"}) + fill_path(request, captured):
            raise InvalidArgument(violations)
        pending = self._stub.GetDatasetVersion(request, metadata=call.metadata(), timeout=call.timeout_seconds)
        version = await call.unary(self._upstream, pending)
        # The resolved name: `latest` may be another version by the time the bytes are asked for.
        *_, dataset_id, _, version_id = version.name.split("/")
        content = Content(
            version.size_bytes, version.sha256, f"{dataset_id}-{version_id}.jsonl", "application/x-ndjson"
        )

        def replies(offset: int) -> Any:
            wanted = dataset.DownloadDatasetRequest(name=version.name, offset_bytes=offset)
            return self._stub.DownloadDataset(wanted, metadata=call.metadata())

        return await _send(call, self._upstream, content, replies)


class FileDownload:
    """One file of a resource that has some, such as a checkpoint: `?path=P`. `method` is its Download RPC."""

    def __init__(self, upstream: Upstream, method: MethodDescriptor) -> None:
        service = method.containing_service
        get = service.methods_by_name[method.name.replace("Download", "Get", 1)]
        stub = catalog.stub(service)(upstream.channel)
        self._upstream = upstream
        self._what = method.name.removeprefix("Download").lower()
        self._get: Any = getattr(stub, get.name)
        self._download: Any = getattr(stub, method.name)
        self._get_request: Any = GetMessageClass(get.input_type)
        self._download_request: Any = GetMessageClass(method.input_type)

    async def __call__(self, call: Call, captured: dict[str, str]) -> Response:
        wanted = self._download_request()
        elsewhere = {"name": "in the path", "offset_bytes": "in the Range header"}
        violations = fill_query(wanted, call.query, elsewhere) + fill_path(wanted, captured)
        if not wanted.path:
            violations.append(Violation("path", f"must be the path of one of the {self._what}'s files"))
        if violations:
            raise InvalidArgument(violations)
        request = self._get_request(name=wanted.name)
        pending = self._get(request, metadata=call.metadata(), timeout=call.timeout_seconds)
        found = await call.unary(self._upstream, pending)
        file = next((file for file in found.files if file.path == wanted.path), None)
        if file is None:
            message = f"{found.name} has no file {wanted.path!r}"
            raise NotFound("FILE_NOT_FOUND", message, name=found.name, path=wanted.path)
        name = file.path.rpartition("/")[2]
        content = Content(file.size_bytes, file.sha256, name, "application/octet-stream")

        def replies(offset: int) -> Any:
            wanted.offset_bytes = offset
            return self._download(wanted, metadata=call.metadata())

        return await _send(call, self._upstream, content, replies)


async def _send(call: Call, upstream: Upstream, content: Content, replies: Any) -> Response:
    """The answer to a download. `replies(offset)` starts the service's stream at a byte."""
    headers = content.headers()
    if ranges.is_known(call.headers, content.etag):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    span = ranges.choose(call.headers, content.size_bytes, content.etag)
    if span is None:
        error = OutOfRange("RANGE_NOT_SATISFIABLE", f"there are {content.size_bytes} bytes")
        unsatisfiable = {"Content-Range": f"bytes */{content.size_bytes}"}
        raise HttpError(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, error, unsatisfiable)
    headers["Content-Length"] = str(span.end - span.start)
    if span.partial:
        headers["Content-Range"] = span.content_range
    status = HTTPStatus.PARTIAL_CONTENT if span.partial else HTTPStatus.OK
    if call.request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=content.media_type)
    stream = replies(span.start)
    try:
        # Headers wait for the first chunk, so that an error still has its own status.
        async with asyncio.timeout(call.timeout_seconds):
            first = await stream.read()
    except grpc.aio.AioRpcError as error:
        raise upstream.error(error) from None
    except TimeoutError:
        stream.cancel()
        raise DeadlineExceeded("DEADLINE_EXCEEDED", f"the {upstream.name} service sent nothing in time") from None
    body = _chunks(upstream, stream, first, span)
    return StreamingResponse(body, status, headers, content.media_type)


async def _chunks(upstream: Upstream, stream: Any, message: Any, span: ranges.Span) -> AsyncIterator[bytes]:
    """The bytes of `span`. Raises rather than end early: the client then sees a broken connection, not a short file."""
    position = span.start
    try:
        while position < span.end:
            if message is grpc.aio.EOF or message.offset_bytes != position:
                raise DataLoss("SHORT_DOWNLOAD", f"the {upstream.name} service stopped at byte {position}")
            chunk = message.chunk[: span.end - position]
            position += len(chunk)
            yield chunk
            if position < span.end:
                async with asyncio.timeout(IDLE_SECONDS):
                    message = await stream.read()
    except grpc.aio.AioRpcError as error:
        raise upstream.error(error) from None
    finally:
        stream.cancel()
