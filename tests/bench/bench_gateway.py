"""What the gateway adds to a unary call: `python tests/bench/bench_gateway.py [calls]`. Prints; asserts nothing.

A service that answers at once, the gateway with its access log and authentication, a FastAPI application that returns
the same JSON with neither service nor token behind it, and this client: a process each. The same dataset is asked for
over gRPC from the service itself, through the gateway over gRPC and over HTTP, and from FastAPI, in turns, so that a
busy machine disturbs all alike: some calls in a row each, as under traffic, and one each, which finds every process
asleep and the caches cold. The HTTP client does nothing but write and read on kept connections.
"""

from __future__ import annotations

import asyncio
import json
import os
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
from processes import cpu_seconds
from rlhf.dataset.v1 import dataset_pb2, dataset_service_pb2, dataset_service_pb2_grpc

from services.gateway.transcoding.transcoder import to_json
from services.supervisor.embedded.ports import free_port

TOKEN = "bench"
METADATA = (("authorization", f"Bearer {TOKEN}"),)
NAME = "projects/p/datasets/d"
DATASET = dataset_pb2.Dataset(name=NAME, format="messages", labels={"a": "b"}, display_name="bench")
WARMING = 100
AT_A_TIME = 64
ROUNDS = 10
ROUNDS_OF_ONE = 5
Call = Callable[[], Awaitable[object]]


class Servicer(dataset_service_pb2_grpc.DatasetServiceServicer):
    async def GetDataset(self, request: Any, context: Any) -> Any:  # type: ignore[override]
        return DATASET


async def serve(port: int) -> None:
    server = grpc.aio.server()
    dataset_service_pb2_grpc.add_DatasetServiceServicer_to_server(Servicer(), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


def serve_fastapi(port: int) -> None:
    """As its documentation starts it: uvicorn with uvloop, httptools and its own access log."""
    import fastapi
    import uvicorn

    app, answer = fastapi.FastAPI(), json.loads(to_json(DATASET))

    @app.get("/v1/projects/{project}/datasets/{dataset}")
    async def get(project: str, dataset: str) -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        return answer

    uvicorn.run(app, port=port, timeout_keep_alive=60)


class Http(asyncio.Protocol):
    """One kept connection, one request at a time."""

    def __init__(self, port: int) -> None:
        self._port = port
        head = f"GET /v1/{NAME} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
        self._request = head.encode()

    async def open(self) -> Http:
        """When the other side serves."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(60):
            while True:
                try:
                    self._transport, _ = await loop.create_connection(lambda: self, "127.0.0.1", self._port)
                    await self.get()
                except (OSError, AssertionError):
                    await asyncio.sleep(0.1)
                else:
                    return self

    async def get(self) -> None:
        self._received = b""
        self._answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport.write(self._request)
        await self._answered
        assert self._received.startswith(b"HTTP/1.1 200"), self._received

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if end and len(body) == int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]):
            self._answered.set_result(None)


async def latencies(calls: int, ways: dict[str, Call], in_a_row: int) -> None:
    took: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range((calls + WARMING) // in_a_row):
        for name, way in ways.items():
            for _ in range(in_a_row):
                start = time.perf_counter()
                await way()
                if turn * in_a_row >= WARMING:
                    took[name].append((time.perf_counter() - start) * 1000)
    base = statistics.median(took["direct gRPC"])
    print(f"one at a time, {in_a_row} in a row each:")
    for name, values in took.items():
        p50, p99 = statistics.median(values), statistics.quantiles(values, n=100)[98]
        print(f"{name:25} p50 {p50:.3f} ms  p99 {p99:.3f} ms  added to direct gRPC at p50 {p50 - base:+.3f} ms")


async def rates(ways: dict[str, list[Call]], servers: dict[str, list[int]]) -> None:
    """`ways` has AT_A_TIME calls each, `servers` the processes that answer them."""
    seconds, cpu = dict.fromkeys(ways, 0.0), dict.fromkeys(ways, 0.0)
    print(f"{AT_A_TIME} at a time:")
    for _ in range(ROUNDS):
        for name, calls in ways.items():
            cpu[name] -= cpu_seconds(*servers[name])
            start = time.perf_counter()
            for _ in range(ROUNDS_OF_ONE):
                await asyncio.gather(*(call() for call in calls))
            seconds[name] += time.perf_counter() - start
            cpu[name] += cpu_seconds(*servers[name])
    total = ROUNDS * ROUNDS_OF_ONE * AT_A_TIME
    for name in ways:
        ratio = seconds["FastAPI"] / seconds[name]
        line = f"{name:25} {total / seconds[name]:6.0f} calls/s, {ratio:.2f} of FastAPI's rate"
        print(f"{line}; {cpu[name] / total * 1e6:.0f} µs of processor a call in its servers")


async def measure(calls: int, ports: dict[str, int], pids: dict[str, int]) -> None:
    request = dataset_service_pb2.GetDatasetRequest(name=NAME)

    def stub(port: int) -> Call:
        found: Any = dataset_service_pb2_grpc.DatasetServiceStub(grpc.aio.insecure_channel(f"127.0.0.1:{port}"))
        return lambda: found.GetDataset(request, metadata=METADATA)

    gateway = [await Http(ports["http"]).open() for _ in range(AT_A_TIME)]
    fastapi = [await Http(ports["fastapi"]).open() for _ in range(AT_A_TIME)]
    direct, proxied = stub(ports["service"]), stub(ports["proxy"])
    ways: dict[str, list[Call]] = {
        "direct gRPC": [direct] * AT_A_TIME,
        "gRPC through the gateway": [proxied] * AT_A_TIME,
        "HTTP through the gateway": [one.get for one in gateway],
        "FastAPI": [one.get for one in fastapi],
    }
    both = [pids["service"], pids["gateway"]]
    servers = dict(zip(ways, ([pids["service"]], both, both, [pids["fastapi"]]), strict=True))
    print(f"load before: {os.getloadavg()[0]:.1f}, {os.cpu_count()} processors")
    for in_a_row in (20, 1):
        await latencies(calls, {name: some[0] for name, some in ways.items()}, in_a_row)
    await rates(ways, servers)


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        uvloop.run(serve(int(sys.argv[2])))
        return
    if sys.argv[1:2] == ["--fastapi"]:
        serve_fastapi(int(sys.argv[2]))
        return
    ports = {name: free_port() for name in ("service", "http", "proxy", "fastapi")}
    with tempfile.TemporaryDirectory() as home:
        Path(home, "token").write_text(TOKEN)
        environment = os.environ | {
            "RLHF_HOME": home,
            "RLHF_DATASET_TARGET": f"127.0.0.1:{ports['service']}",
            "RLHF_GATEWAY_HTTP_LISTEN": f"127.0.0.1:{ports['http']}",
            "RLHF_GATEWAY_GRPC_LISTEN": f"127.0.0.1:{ports['proxy']}",
        }
        commands = {
            "service": [__file__, "--serve", str(ports["service"])],
            "gateway": ["-m", "services.gateway"],
            "fastapi": [__file__, "--fastapi", str(ports["fastapi"])],
        }
        with Path(home, "log").open("wb") as log:
            processes = {
                name: subprocess.Popen([sys.executable, *command], env=environment, stdout=log, stderr=log)
                for name, command in commands.items()
            }
        try:
            calls = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
            uvloop.run(measure(calls, ports, {name: process.pid for name, process in processes.items()}))
        finally:
            for process in processes.values():
                process.terminate()
                process.wait(15)


if __name__ == "__main__":
    main()
