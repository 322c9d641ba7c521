"""What the gateway adds to a unary call: `python tests/bench/bench_gateway.py [calls]`. Prints; asserts nothing.

Three processes: a service that answers at once, the gateway, and this client. The same GetDataset goes straight to the
service, through the gRPC proxy, and through HTTP over one kept connection with a client that does nothing but read and
write, in turns, so that a busy machine disturbs all three alike.
"""

from __future__ import annotations

import asyncio
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import uvloop
from rlhf.dataset.v1 import dataset_pb2, dataset_service_pb2, dataset_service_pb2_grpc

TOKEN = "bench"
METADATA = (("authorization", f"Bearer {TOKEN}"),)
NAME = "projects/p/datasets/d"


class Servicer(dataset_service_pb2_grpc.DatasetServiceServicer):
    async def GetDataset(self, request: Any, context: Any) -> Any:
        return dataset_pb2.Dataset(name=request.name, format="messages", labels={"a": "b"}, display_name="bench")


async def serve(port: int) -> None:
    server = grpc.aio.server()
    dataset_service_pb2_grpc.add_DatasetServiceServicer_to_server(Servicer(), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


class Http:
    """One kept connection."""

    def __init__(self, port: int) -> None:
        self._port = port
        head = f"GET /v1/{NAME} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
        self._request = head.encode()

    async def open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)

    async def get(self) -> None:
        self._writer.write(self._request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        await self._reader.readexactly(length)


async def until(action: Callable[[], Awaitable[object]]) -> None:
    for _ in range(200):
        try:
            await action()
            return
        except (OSError, grpc.aio.AioRpcError, AssertionError, asyncio.IncompleteReadError):
            await asyncio.sleep(0.05)
    raise TimeoutError


async def measure(calls: int, service: int, http: int, proxy: int) -> None:
    request = dataset_service_pb2.GetDatasetRequest(name=NAME)
    direct: Any = dataset_service_pb2_grpc.DatasetServiceStub(grpc.aio.insecure_channel(f"127.0.0.1:{service}"))
    proxied: Any = dataset_service_pb2_grpc.DatasetServiceStub(grpc.aio.insecure_channel(f"127.0.0.1:{proxy}"))
    connection = Http(http)
    await until(connection.open)
    ways: dict[str, Callable[[], Awaitable[object]]] = {
        "direct gRPC": lambda: direct.GetDataset(request, metadata=METADATA),
        "gRPC through the gateway": lambda: proxied.GetDataset(request, metadata=METADATA),
        "HTTP through the gateway": connection.get,
    }
    for way in ways.values():
        await until(way)
    took: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(calls):
        for name, way in ways.items():
            start = time.perf_counter()
            await way()
            took[name].append((time.perf_counter() - start) * 1000)
    base = statistics.median(took["direct gRPC"])
    for name, values in took.items():
        p50, p99 = statistics.median(values), statistics.quantiles(values, n=100)[98]
        print(f"{name:26} p50 {p50:.3f} ms  p99 {p99:.3f} ms  added at p50 {p50 - base:+.3f} ms")
    for name, way in ways.items():
        if way != connection.get:  # one HTTP connection carries one call at a time
            start = time.perf_counter()
            for _ in range(20):
                await asyncio.gather(*(way() for _ in range(64)))
            print(f"{name:26} {20 * 64 / (time.perf_counter() - start):.0f} calls/s, 64 at a time")
    many = [Http(http) for _ in range(64)]
    await asyncio.gather(*(one.open() for one in many))
    start = time.perf_counter()
    for _ in range(20):
        await asyncio.gather(*(one.get() for one in many))
    print(f"{'HTTP through the gateway':26} {20 * 64 / (time.perf_counter() - start):.0f} calls/s, 64 at a time")


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        uvloop.run(serve(int(sys.argv[2])))
        return
    calls = int(sys.argv[1]) if len(sys.argv) > 1 else 3000
    service, http, proxy = free_port(), free_port(), free_port()
    with tempfile.TemporaryDirectory() as home:
        Path(home, "token").write_text(TOKEN)
        environment = os.environ | {
            "RLHF_HOME": home,
            "RLHF_DATASET_TARGET": f"127.0.0.1:{service}",
            "RLHF_GATEWAY_HTTP_LISTEN": f"127.0.0.1:{http}",
            "RLHF_GATEWAY_GRPC_LISTEN": f"127.0.0.1:{proxy}",
        }
        commands = ([sys.executable, __file__, "--serve", str(service)], [sys.executable, "-m", "services.gateway"])
        processes = [subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) for command in commands]
        try:
            uvloop.run(measure(calls, service, http, proxy))
        finally:
            for process in processes:
                process.terminate()
                process.wait(15)


if __name__ == "__main__":
    main()
