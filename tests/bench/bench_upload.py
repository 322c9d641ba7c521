"""An upload from end to end: `python tests/bench/bench_upload.py [--megabytes 400]`. Prints; asserts nothing.

Service and worker are processes of their own, PostgreSQL and NATS the embedded ones. The file is prompt rows of some
2 kB as JSON lines. Timed are: sending it in chunks of 1 MiB until the service has it on disk (fsync included), what
the disk alone takes for the same bytes, the commit until the version is there (hash, every row checked, canonical
chunks and the source file stored), and the download of the canonical rows, every chunk verified.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import uvloop

sys.path.insert(0, str(Path(__file__).parents[2]))

from services.mesh import embedded, identity
from tests.integration.dataset.caller import Caller, State
from tests.integration.dataset.conftest import calling, environment, process

MIB = 1 << 20


def make(path: Path, megabytes: int) -> tuple[int, str]:
    """(bytes, SHA-256) of the file that it writes."""
    digest, size, number = hashlib.sha256(), 0, 0
    with path.open("wb") as file:
        while size < megabytes * MIB:
            text = f"Question {number}: " + "what follows from what was said before? " * 48
            row = {"prompt": [{"role": "user", "content": text}], "answer": str(number)}
            line = json.dumps(row).encode() + b"\n"
            digest.update(line)
            size += file.write(line)
            number += 1
    return size, digest.hexdigest()


def disk_seconds(source: Path, target: Path) -> float:
    """What a plain copy takes, with fsync."""
    start = time.monotonic()
    with source.open("rb") as reading, target.open("wb") as writing:
        while chunk := reading.read(MIB):
            writing.write(chunk)
        writing.flush()
        os.fsync(writing.fileno())
    return time.monotonic() - start


def told(what: str, size: int, seconds: float) -> None:
    print(f"{what:<44}{seconds:8.2f} s {size / MIB / seconds:8.0f} MiB/s")


async def measure(caller: Caller, path: Path, size: int, sha256: str) -> None:
    from rlhf.dataset.v1 import dataset_pb2
    from rlhf.dataset.v1 import dataset_service_pb2 as pb

    dataset = await caller.dataset()
    described = dataset_pb2.Upload(file_name=path.name, size_bytes=size, sha256=sha256)
    upload = await caller.stub.CreateUpload(pb.CreateUploadRequest(parent=dataset.name, upload=described))

    async def pieces() -> AsyncIterator[pb.WriteUploadRequest]:
        with path.open("rb") as file:
            name = upload.name
            while chunk := file.read(MIB):
                yield pb.WriteUploadRequest(name=name, chunk=chunk)
                name = ""

    start = time.monotonic()
    await caller.stub.WriteUpload(pieces())
    told("gRPC upload, written and synced", size, time.monotonic() - start)
    start = time.monotonic()
    await caller.commit(upload.name)
    ended = await caller.ended(upload.name)
    assert ended.state == State.STATE_SUCCEEDED, ended
    told("commit to version", size, time.monotonic() - start)
    version = await caller.version(ended.dataset_version)
    start, received = time.monotonic(), 0
    async for reply in caller.stub.DownloadDataset(pb.DownloadDatasetRequest(name=version.name)):
        received += len(reply.chunk)
    assert received == version.size_bytes
    told("download of the canonical rows", received, time.monotonic() - start)


async def main(megabytes: int, folder: Path) -> None:
    home = folder / "home"
    home.mkdir(mode=0o700)
    identity.ensure_token(home / "token")
    path = folder / "rows.jsonl"
    size, sha256 = make(path, megabytes)
    async with embedded.postgres(folder / "postgres") as postgres, embedded.nats(folder / "nats") as nats:
        port = embedded.free_port()
        values = environment(home, postgres.url, nats.url, RLHF_DATASET_LISTEN=f"127.0.0.1:{port}")
        with contextlib.ExitStack() as stack:
            start = time.monotonic()
            stack.enter_context(process("services.dataset", values, "service"))
            print(f"{'service ready after':<44}{time.monotonic() - start:8.2f} s")
            stack.enter_context(process("services.dataset.worker", values, "worker"))
            start = time.monotonic()
            sha256_again = hashlib.file_digest(path.open("rb"), "sha256").hexdigest()
            assert sha256_again == sha256
            told("SHA-256 alone", size, time.monotonic() - start)
            told("plain copy, synced", size, disk_seconds(path, folder / "copy"))
            async with calling(f"127.0.0.1:{port}", values) as caller:
                for _ in range(2):
                    await measure(caller, path, size, sha256)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=400)
    with tempfile.TemporaryDirectory(prefix="bench-upload-") as temporary:
        uvloop.run(main(parser.parse_args().megabytes, Path(temporary)))
