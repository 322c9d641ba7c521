"""Storing what runs report, beside MLflow's tracking server: `python -m tests.bench.bench_metrics [options]`.

First many runs report at a steady pace and all they said is looked for in the database. Then, in turns on the same
PostgreSQL server, the same number of runs report as fast as they can, and as many clients send MLflow's server
`log-batch` requests of 1000 metrics as fast as it answers. These clients have as little to do as possible: each keeps a
connection and sends bodies of JSON, without MLflow's own library. Prints; asserts that nothing is lost.

MLflow lives in an environment of its own, `.venv-mlflow`, made at the first use: it brings some thirty packages that
nothing else here needs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import msgspec
import psycopg
import uvloop

from services.supervisor.embedded.ports import free_port
from tests.bench.rig import Rig, cpu_seconds_of, rig

ROOT = Path(__file__).parents[2]
MLFLOW_FOLDER = ROOT / ".venv-mlflow"
MLFLOW = ("mlflow==3.17.2", "psycopg[binary]>=3.3,<4")
KEYS = 20
MLFLOW_BATCH = 1000
_JSON = {"Content-Type": "application/json"}


class Rate(NamedTuple):
    """Points a second, and points a CPU second of whatever served and stored them."""

    wall: float
    cpu: float


async def stored(found: Rig, jobs: list[str], steps: int) -> None:
    """Every point of every job is there once, with the value it was sent with."""
    async with await psycopg.AsyncConnection.connect(found.database_url) as connection:
        for name in jobs:
            cursor = await connection.execute(
                "SELECT count(*), count(DISTINCT ordinal), min(ordinal), max(ordinal),"
                " count(*) FILTER (WHERE value = 'NaN'), count(*) FILTER (WHERE value = step * %(keys)s +"
                " substr(metric, 14)::int), count(DISTINCT (step, metric)) FROM trainer.metric_points"
                " WHERE job_uid = (SELECT uid FROM trainer.jobs WHERE name = %(name)s)",
                {"keys": KEYS, "name": name},
            )
            points = steps * KEYS
            assert await cursor.fetchone() == (points, points, 1, points, 1, points - 1, points), name


async def reported(found: Rig, jobs: int, steps: int, steps_per_second: float) -> Rate:
    """So many jobs from the sign to begin until the last has ended."""
    begin = found.start_worker(KEYS, steps_per_second)
    names = await asyncio.gather(*(found.create(steps) for _ in range(jobs)))
    await found.started(names)
    before, start = found.cpu_seconds(), time.perf_counter()
    begin.touch()
    await found.ended(names)
    took = time.perf_counter() - start
    used = {name: after - before[name] for name, after in found.cpu_seconds().items()}
    await found.stop("trainer.worker")
    await stored(found, names, steps)
    points = jobs * steps * KEYS
    cpu = ", ".join(f"{name} {seconds:.1f}" for name, seconds in used.items())
    pace = f"{steps_per_second * KEYS:.0f} points/s each" if steps_per_second else "as fast as they can"
    print(f"rlhf-mesh: {jobs} jobs, {pace}: {points} points sent, stored once, right; {took:.1f} s", flush=True)
    print(f"           {points / took:.0f} points/s; CPU seconds (the worker's with its runs): {cpu}", flush=True)
    return Rate(points / took, points / sum(used.values()))


def mlflow_program() -> Path:
    """Made at the first use."""
    program = MLFLOW_FOLDER / "bin" / "mlflow"
    if not program.exists():
        subprocess.run([sys.executable, "-m", "venv", MLFLOW_FOLDER], check=True)
        subprocess.run([MLFLOW_FOLDER / "bin" / "pip", "install", "-q", *MLFLOW], check=True)
    return program


@contextlib.asynccontextmanager
async def mlflow_server(found: Rig, program: Path) -> AsyncIterator[tuple[httpx.AsyncClient, int]]:
    """The server as its documentation starts it, on a database of its own; a client and the process's id."""
    async with await psycopg.AsyncConnection.connect(found.postgres.administrator_url, autocommit=True) as connection:
        await connection.execute("CREATE DATABASE mlflow OWNER rlhf")
    port, url = free_port(), found.postgres.url_of("mlflow")
    with (found.postgres.folder / "mlflow.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(program, "server", "--port", str(port), "--backend-store-uri", url),
            env={**os.environ, "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"},
            cwd=found.postgres.folder,
            stdout=log,
            stderr=log,
        )
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=httpx.Timeout(120, pool=None)) as client:
        try:
            async with asyncio.timeout(300):
                while process.returncode is None:
                    with contextlib.suppress(httpx.TransportError):
                        if (await client.get("/health")).is_success:
                            break
                    await asyncio.sleep(0.5)
            assert process.returncode is None, (found.postgres.folder / "mlflow.log").read_text()[-2000:]
            yield client, process.pid
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await process.wait()


async def mlflow(client: httpx.AsyncClient, found: Rig, clients: int, seconds: float, server: int) -> Rate:
    """So many clients for so long; what they sent is looked for in the database."""

    async def call(path: str, body: Any) -> Any:
        reply = await client.post(f"/api/2.0/mlflow/{path}", content=msgspec.json.encode(body), headers=_JSON)
        assert reply.is_success, reply.text
        return reply.json()

    async def send(run: str) -> int:
        batches = 0
        while time.perf_counter() < end:
            first = batches * MLFLOW_BATCH // KEYS
            now = time.time_ns() // 1_000_000
            metrics = [
                {"key": f"bench/metric_{k:02}", "value": s * KEYS + k, "timestamp": now, "step": s}
                for s in range(first, first + MLFLOW_BATCH // KEYS)
                for k in range(KEYS)
            ]
            await call("runs/log-batch", {"run_id": run, "metrics": metrics})
            batches += 1
        return batches

    runs = [(await call("runs/create", {"experiment_id": "0"}))["run"]["info"]["run_id"] for _ in range(clients)]
    processes = cpu_seconds_of(server)
    postgres = found.cpu_seconds()["postgres"]
    start = time.perf_counter()
    end = start + seconds
    batches = sum(await asyncio.gather(*map(send, runs)))
    took = time.perf_counter() - start
    used = cpu_seconds_of(server) - processes, found.cpu_seconds()["postgres"] - postgres
    url = found.postgres.url_of("mlflow")
    async with await psycopg.AsyncConnection.connect(url) as connection:
        cursor = await connection.execute("SELECT count(*) FROM metrics WHERE run_uuid = ANY(%s)", (runs,))
        assert await cursor.fetchone() == (batches * MLFLOW_BATCH,)
    metrics = batches * MLFLOW_BATCH
    print(f"MLflow:    {clients} clients, log-batch of {MLFLOW_BATCH}: {batches} batches, all stored; {took:.1f} s")
    print(
        f"           {metrics / took:.0f} metrics/s; CPU seconds: server {used[0]:.1f}, postgres {used[1]:.1f}",
        flush=True,
    )
    return Rate(metrics / took, metrics / sum(used))


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=20)
    parser.add_argument("--points-per-second", type=float, default=1000)
    parser.add_argument("--seconds", type=float, default=60, help="of the steady pace")
    parser.add_argument("--rounds", type=int, default=3, help="of ours and MLflow's in turns")
    parser.add_argument("--round-seconds", type=float, default=15, help="of MLflow's clients in each round")
    parser.add_argument("--round-points", type=int, default=100_000, help="of each of our jobs in each round")
    options = parser.parse_args()
    program = await asyncio.to_thread(mlflow_program) if options.rounds else Path()
    with tempfile.TemporaryDirectory() as folder:
        async with rig(Path(folder), options.jobs) as found:
            pace = options.points_per_second / KEYS
            await reported(found, options.jobs, int(options.seconds * pace), pace)
            if not options.rounds:
                return
            async with mlflow_server(found, program) as (client, server):
                ratios: list[Rate] = []
                for _ in range(options.rounds):
                    ours = await reported(found, options.jobs, options.round_points // KEYS, 0)
                    theirs = await mlflow(client, found, options.jobs, options.round_seconds, server)
                    ratios.append(Rate(ours.wall / theirs.wall, ours.cpu / theirs.cpu))
                    print(f"ratio      {ratios[-1].wall:.1f} by time, {ratios[-1].cpu:.1f} by CPU time", flush=True)
    wall, cpu = (statistics.median(each) for each in zip(*ratios, strict=True))
    print(f"median of {len(ratios)} rounds: {wall:.1f} times MLflow's rate by time, {cpu:.1f} by CPU time")


if __name__ == "__main__":
    uvloop.run(main())
