"""Uploads over gRPC: `python tests/bench/bench_upload.py [--megabytes 400] [--pairs 5]`. Prints only.

Service and worker are processes of their own, PostgreSQL and NATS the embedded ones; the client is this process. The
file is prompt rows of some 2 kB as JSON lines, sent in chunks of 1 MiB. In turns, so that what else the machine does
meets all of them alike:

    raw      a bare grpc.aio server that takes the same messages and drops them: the limit of this way of sending
    hashed   the same, with SHA-256 and a synced file, written straightforwardly: a plain server's best
    upload   WriteUpload of the dataset service: authenticated, checked, locked, on disk and synced when it answers
    beside   WriteUpload while the worker validates the file uploaded before
    version  from CommitUpload to the version: hash, every row checked, canonical chunks and the source file stored

"CPU" is processor time of the receiving processes, user and system; with `beside` and `version` that of the worker and
its reader too. The client's is given apart.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import uvloop

sys.path.insert(0, str(Path(__file__).parents[2]))

from rlhf.dataset.v1 import dataset_pb2
from rlhf.dataset.v1 import dataset_service_pb2 as pb

from services.mesh import identity
from services.supervisor import embedded
from tests.bench.processes import cpu_seconds
from tests.integration.dataset.caller import Caller, State
from tests.integration.dataset.conftest import calling, environment, process

MIB = 1 << 20
RAW = "/bench.Raw/"


def make(path: Path, megabytes: int) -> tuple[int, str]:
    """(bytes, SHA-256) of the file that it writes."""
    digest, size, number = hashlib.sha256(), 0, 0
    with path.open("wb") as file:
        while size < megabytes * 1_000_000:
            text = f"Question {number}: " + "what follows from what was said before? " * 48
            row = {"prompt": [{"role": "user", "content": text}], "answer": str(number)}
            line = json.dumps(row).encode() + b"\n"
            digest.update(line)
            size += file.write(line)
            number += 1
    return size, digest.hexdigest()


async def raw_server(port: int, folder: Path) -> None:
    """Takes WriteUpload's messages in two ways; nothing else."""

    async def drop(messages: AsyncIterator[pb.WriteUploadRequest], context: Any) -> dataset_pb2.Upload:
        async for message in messages:
            len(message.chunk)
        return dataset_pb2.Upload()

    async def hashed(messages: AsyncIterator[pb.WriteUploadRequest], context: Any) -> dataset_pb2.Upload:
        digest = hashlib.sha256()

        def take(chunk: bytes) -> None:
            digest.update(chunk)
            file.write(chunk)

        with (folder / "raw").open("wb", buffering=0) as file:
            async for message in messages:
                await asyncio.to_thread(take, message.chunk)
            await asyncio.to_thread(os.fsync, file.fileno())
        return dataset_pb2.Upload(sha256=digest.hexdigest())

    server = grpc.aio.server()
    handlers = {
        name: grpc.stream_unary_rpc_method_handler(
            method, pb.WriteUploadRequest.FromString, dataset_pb2.Upload.SerializeToString
        )
        for name, method in (("drop", drop), ("hashed", hashed))
    }
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("bench.Raw", handlers)])
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


async def pieces(path: Path, name: str) -> AsyncIterator[pb.WriteUploadRequest]:
    with path.open("rb") as file:
        while chunk := file.read(MIB):
            yield pb.WriteUploadRequest(name=name, chunk=chunk)
            name = ""


@dataclass
class Bench:
    path: Path
    size: int
    sha256: str
    caller: Caller
    raw: grpc.aio.Channel
    raw_pid: int
    service_pid: int
    worker_pid: int
    seen: dict[str, list[tuple[float, float, float]]] = field(default_factory=dict)
    """(wall, receivers' CPU, client's CPU) in seconds."""

    @contextlib.contextmanager
    def timed(self, what: str, *pids: int) -> Iterator[None]:
        cpu, own, start = cpu_seconds(*pids), time.process_time(), time.monotonic()
        yield
        wall = time.monotonic() - start
        self.seen.setdefault(what, []).append((wall, cpu_seconds(*pids) - cpu, time.process_time() - own))

    async def send_raw(self, method: str) -> None:
        call = self.raw.stream_unary(
            f"{RAW}{method}",
            request_serializer=pb.WriteUploadRequest.SerializeToString,
            response_deserializer=dataset_pb2.Upload.FromString,
        )
        answer = await call(pieces(self.path, "x"))
        assert answer.sha256 in ("", self.sha256)

    async def announce(self) -> str:
        dataset = (await self.caller.dataset()).name
        described = dataset_pb2.Upload(file_name=self.path.name, size_bytes=self.size, sha256=self.sha256)
        return (await self.caller.stub.CreateUpload(pb.CreateUploadRequest(parent=dataset, upload=described))).name

    async def write(self, upload: str) -> None:
        await self.caller.stub.WriteUpload(pieces(self.path, upload))

    async def ended(self, upload: str) -> None:
        ended = await self.caller.ended(upload)
        assert ended.state == State.STATE_SUCCEEDED, ended

    async def pair(self) -> None:
        with self.timed("raw", self.raw_pid):
            await self.send_raw("drop")
        first, second = await self.announce(), await self.announce()
        with self.timed("upload", self.service_pid):
            await self.write(first)
        with self.timed("hashed", self.raw_pid):
            await self.send_raw("hashed")
        with self.timed("version", self.service_pid, self.worker_pid):
            await self.caller.commit(first)
            await self.ended(first)
        third = await self.announce()
        await self.write(second)
        await self.caller.commit(second)
        with self.timed("beside", self.service_pid, self.worker_pid):
            await self.write(third)
        await self.ended(second)

    def tell(self) -> None:
        megabytes = self.size / 1e6
        print(f"{'':10}{'MB/s':>8}{'least':>7}{'most':>7}{'MB per CPU s':>15}{'client':>9}{'of raw, MB/s':>15}")
        limit = [wall for wall, _, _ in self.seen["raw"]]
        for what in ("raw", "hashed", "upload", "beside", "version"):
            walls, cpus, own = zip(*self.seen[what], strict=True)
            speeds = [megabytes / wall for wall in walls]
            ratio = statistics.median(best / wall for best, wall in zip(limit, walls, strict=True))
            print(
                f"{what:10}{statistics.median(speeds):8.0f}{min(speeds):7.0f}{max(speeds):7.0f}"
                f"{megabytes / statistics.median(cpus):15.0f}{megabytes / statistics.median(own):9.0f}{ratio:15.2f}"
            )


async def main(megabytes: int, pairs: int, folder: Path) -> None:
    home = folder / "home"
    home.mkdir(mode=0o700)
    identity.ensure_token(home / "token")
    path = folder / "rows.jsonl"
    size, sha256 = make(path, megabytes)
    async with embedded.postgres(folder / "postgres") as postgres, embedded.nats(folder / "nats") as nats:
        port, raw_port = embedded.free_port(), embedded.free_port()
        values = environment(home, postgres.url, nats.url, RLHF_DATASET_LISTEN=f"127.0.0.1:{port}")
        command = [sys.executable, __file__, "--raw-server", str(raw_port), str(folder)]
        with contextlib.ExitStack() as stack:
            raw = stack.enter_context(subprocess.Popen(command))  # noqa: ASYNC220
            stack.callback(raw.kill)
            service = stack.enter_context(process("services.dataset", values, "service"))
            worker = stack.enter_context(process("services.dataset.worker", values, "worker"))
            async with (
                calling(f"127.0.0.1:{port}", values) as caller,
                grpc.aio.insecure_channel(f"127.0.0.1:{raw_port}") as channel,
            ):
                await channel.channel_ready()
                bench = Bench(path, size, sha256, caller, channel, raw.pid, service.pid, worker.pid)
                for _ in range(pairs):
                    await bench.pair()
                    (folder / "raw").unlink()
                print(f"{size / 1e6:.0f} MB, {pairs} rounds, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
                bench.tell()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--raw-server"]:
        uvloop.run(raw_server(int(sys.argv[2]), Path(sys.argv[3])))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=400)
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-upload-") as temporary:
        uvloop.run(main(options.megabytes, options.pairs, Path(temporary)))
