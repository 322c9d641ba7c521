"""From a run's emission of a point to many watchers: `python -m tests.bench.bench_watchers [options]`.

One run reports 20 keys ten times a second. Watchers in one other process follow its metrics through the gateway, half
as Server-Sent Events and half by WebSocket, each on a connection of its own. A point's `observeTime` is the clock when
the run appended it to its spool; the watcher looks at the same clock when it has the bytes. Spool, worker, database,
trainer and gateway are the real ones. Prints; asserts that each watcher received every point once.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import uvloop

from tests.bench.rig import rig

KEYS = 20
STEPS_PER_SECOND = 10.0
_POINT = re.compile(rb'"observeTime":\s*"([^"]+)"[^}]*?"ordinal":\s*"(\d+)"')


class Watcher:
    """Reads frames and keeps each as it came with the time; they are taken apart after the last."""

    def __init__(self, port: int, token: str, job: str, websocket: bool) -> None:
        self._port = port
        self._websocket = websocket
        head = f"GET /v1/{job}:streamMetrics HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n"
        if websocket:
            key = base64.b64encode(os.urandom(16)).decode()
            head += "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            head += f"Sec-WebSocket-Key: {key}\r\n"
        else:
            head += "Accept: text/event-stream\r\n"
        self._request = head.encode() + b"\r\n"
        self.frames: list[tuple[float, bytes]] = []

    async def open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 20)
        self._writer.write(self._request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        expected = b" 101 " if self._websocket else b" 200 "
        assert expected in head.split(b"\r\n")[0], head

    async def follow(self) -> None:
        async for frame in self._messages() if self._websocket else self._events():
            self.frames.append((time.time(), frame))
        self._writer.close()

    async def _messages(self) -> AsyncIterator[bytes]:
        while True:
            first, length = await self._reader.readexactly(2)
            if length == 126:
                length = int.from_bytes(await self._reader.readexactly(2))
            elif length == 127:
                length = int.from_bytes(await self._reader.readexactly(8))
            payload = await self._reader.readexactly(length)
            if first & 15 == 8:
                assert int.from_bytes(payload[:2]) == 1000, payload
                return
            if first & 15 == 9:  # a pong of a ping: masked, as all that a client sends, by a mask of zeros
                self._writer.write(bytes((0x8A, 0x80 | length, 0, 0, 0, 0)) + payload)
            if first & 15 == 1:
                yield payload

    async def _events(self) -> AsyncIterator[bytes]:
        while size := int(await self._reader.readuntil(b"\r\n"), 16):
            chunk = await self._reader.readexactly(size + 2)
            if b"event: end" in chunk:
                continue
            assert b"event: error" not in chunk, chunk
            if b"data: " in chunk:
                yield chunk

    def delays(self, points: int) -> list[float]:
        """Milliseconds of each point. Every one must be there once, in order."""
        found: list[float] = []
        ordinals: list[int] = []
        for at, frame in self.frames:
            for observed, ordinal in _POINT.findall(frame):
                ordinals.append(int(ordinal))
                found.append((at - _seconds(observed)) * 1000)
        assert ordinals == list(range(1, points + 1)), (len(ordinals), points, ordinals[:3], ordinals[-3:])
        return found


_parsed: dict[bytes, float] = {}


def _seconds(moment: bytes) -> float:
    if moment not in _parsed:
        whole, _, fraction = moment.decode().rstrip("Z").partition(".")
        seconds = datetime.fromisoformat(whole).replace(tzinfo=UTC).timestamp()
        _parsed[moment] = seconds + float(f"0.{fraction or 0}")
    return _parsed[moment]


async def watch(port: int, token: str, job: str, watchers: int, points: int) -> None:
    """The watchers' process: says when all are connected, then what they saw."""
    all_ = [Watcher(port, token, job, websocket=number % 2 == 0) for number in range(watchers)]
    # Together: the gateway waits a second for a stream's first message before it answers.
    await asyncio.gather(*(each.open() for each in all_))
    print("connected", flush=True)
    await asyncio.gather(*(each.follow() for each in all_))
    for name, some in (("WebSocket", all_[::2]), ("SSE", all_[1::2]), ("all", all_)):
        delays = [delay for each in some for delay in each.delays(points)]
        cuts = statistics.quantiles(delays, n=1000)
        print(
            f"{name:10} {len(some)} watchers × {points} points, each received once:"
            f" p50 {cuts[499]:.1f} ms  p99 {cuts[989]:.1f} ms  p99.9 {cuts[998]:.1f} ms  max {max(delays):.1f} ms"
        )
    print(f"{'':10} the watchers' own process used {time.process_time():.1f} CPU seconds")


async def main(watchers: int, seconds: float) -> None:
    steps = int(seconds * STEPS_PER_SECOND)
    with tempfile.TemporaryDirectory() as folder:
        async with rig(Path(folder), 1) as found:
            begin = found.start_worker(KEYS, STEPS_PER_SECOND)
            job = await found.create(steps)
            await found.started([job])
            arguments = ["--watch", str(found.port), found.token, job, str(watchers), str(steps * KEYS)]
            command = [sys.executable, "-m", "tests.bench.bench_watchers", *arguments]
            process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
            assert process.stdout is not None
            assert await process.stdout.readline() == b"connected\n"
            before, start = found.cpu_seconds(), time.perf_counter()
            begin.touch()
            print((await process.stdout.read()).decode().rstrip())
            took = time.perf_counter() - start
            used = ", ".join(f"{name} {after - before[name]:.1f}" for name, after in found.cpu_seconds().items())
            print(f"{took:.1f} s; CPU seconds: {used}; load {os.getloadavg()[0]:.1f}")
            assert await process.wait() == 0
            await found.ended([job])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--watch"]:
        uvloop.run(watch(int(sys.argv[2]), sys.argv[3], sys.argv[4], int(sys.argv[5]), int(sys.argv[6])))
    else:
        parser = argparse.ArgumentParser()
        parser.add_argument("--watchers", type=int, default=150)
        parser.add_argument("--seconds", type=float, default=60)
        options = parser.parse_args()
        uvloop.run(main(options.watchers, options.seconds))
