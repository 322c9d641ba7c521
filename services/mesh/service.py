"""A service with jobs: its database, events and artifacts, the process that answers and the one that carries out jobs.

service = JobService("dataset", settings.mesh, "services.dataset")
service.server(DESCRIPTOR, add_DatasetServiceServicer_to_server, servicer)   # python -m services.dataset
service.worker(jobs, {"validation": handler}, …)                             # python -m services.dataset.worker
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import uvloop
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message

from services.mesh.artifacts.collecting_store import CollectingStore
from services.mesh.artifacts.gc import Collector
from services.mesh.artifacts.marker import claim
from services.mesh.db.expiry import Sweeper
from services.mesh.db.postgres import Database
from services.mesh.errors import PlatformError
from services.mesh.events.bus import Bus
from services.mesh.events.consumer import Consumer, Effect
from services.mesh.events.outbox import EventLog, Relay
from services.mesh.jobs.store import Jobs
from services.mesh.jobs.worker import Handler, Worker
from services.mesh.rpc.server import Process, Server
from services.mesh.settings import NATS, MeshSettings
from services.mesh.telemetry.gauges import Count, Gauges, open_jobs, unpublished_events
from services.mesh.telemetry.logs import configure_logging

Resource = AbstractAsyncContextManager[Any]


class JobService:
    """The parts that every service has. `name` is its schema and its name in logs.

    Migrations are those of the mesh, and of `package` where the service has tables of its own. One process builds
    either the server or the worker.
    """

    def __init__(self, name: str, settings: MeshSettings, package: str = "") -> None:
        self.name = name
        self._packages = ("services.mesh", package) if package else ("services.mesh",)
        self.settings = settings
        self.database = Database(settings.postgres_url, name)
        self.log = EventLog(self.database)
        self.artifacts = CollectingStore(settings.artifacts_url)
        self.collector = Collector(self.database, self.artifacts, settings.keep.unfinished_seconds)

    def server(
        self,
        service: ServiceDescriptor,
        register: Callable[[Any, Any], None],
        servicer: Any,
        *,
        resources: Sequence[Resource] = (),
        counts: Sequence[Count] = (),
        effects: Mapping[type[Message], Effect] | None = None,
        folders: Sequence[Path] = (),
    ) -> Server:
        """The process that answers; it publishes the service's events.

        `register` is the generated `add_…_to_server`. `resources` are entered at start. `counts` are gauges besides
        those of jobs and events. `effects` are those of other services' events here. The disks of `folders` are watched
        beside those of the home and of the artifact store.
        """
        server = Server(self.name, self.settings)
        bus = Bus(self.settings.nats_url, self.name, functools.partial(server.set_serving, NATS))
        self._prepare(server, resources)
        server.add(bus)
        server.add(Gauges(self.database, open_jobs, unpublished_events, *counts))
        server.add_routine("relay", Relay(self.name, self.database, self.log, bus).run)
        if effects:
            server.add_routine("consumer", Consumer(self.name, self.database, bus, effects).run)
        server.watch_disk(*folders)
        server.serve(service.full_name, lambda grpc_server: register(servicer, grpc_server))
        return server

    def worker(
        self,
        jobs: Jobs,
        handlers: Mapping[str, Handler],
        *,
        concurrency: int,
        lease_seconds: float,
        resources: Sequence[Resource] = (),
    ) -> Process:
        """The process that leases `concurrency` jobs at a time, expires old rows and collects artifacts."""
        name = f"{self.name}.worker"
        process = Process(name, self.settings.ready_file, self.settings.telemetry)
        worker = Worker(name, self.database, jobs, handlers, concurrency=concurrency, lease_seconds=lease_seconds)
        sweeper = Sweeper(self.database, self.settings.artifacts_url, self.settings.keep)
        self._prepare(process, resources)
        process.add_routine("worker", worker.run)
        process.add_routine("collector", self.collector.run)
        process.add_routine("expiry", sweeper.run)
        return process

    def _prepare(self, process: Process, resources: Sequence[Resource]) -> None:
        """What comes first in both: tables, connections, and the mark that the artifact store is this database's."""
        process.add_step(lambda: self.database.migrate(*self._packages))
        for resource in (self.database, *resources):
            process.add(resource)
        process.add_step(lambda: claim(self.database, self.artifacts))


def main(name: str, build: Callable[[], Process]) -> None:
    """Run the process that `build` makes until SIGTERM. Exits with 1 and the reason where its settings are wrong."""
    configure_logging(name)

    async def run() -> None:
        # Within the loop: clients of gRPC belong to the one that runs when they are made.
        try:
            process = build()
        except PlatformError as error:
            logging.getLogger(f"services.{name}").error("cannot start: %s", error)
            sys.exit(1)
        await process.run()

    uvloop.run(run())
