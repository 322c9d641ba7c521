"""What `rlhf up` runs: the embedded PostgreSQL, NATS and Ray, unless a setting names others, and the services."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from services.mesh import catalog
from services.mesh.processes.fork_server import client as fork_server
from services.mesh.settings import NATS, Environment, TelemetrySettings
from services.supervisor import probes, settings
from services.supervisor.embedded import Home, Nats, Postgres, RayHead, Resources, default_resources
from services.supervisor.embedded.process import Program
from services.supervisor.group import Plan, Planned
from services.supervisor.leftovers import MARK
from services.supervisor.ports import Ports

# Ray and a training that runs in it outlive a supervisor that is killed.
KEEP = frozenset({"ray"})
FORK_SERVER = "fork-server"
# How long a start waits for the gateway to see all services.
_PATIENCE_SECONDS = 5.0
_HOST = "127.0.0.1"
_CERTIFICATE, _KEY = "RLHF_TLS_CERTIFICATE", "RLHF_TLS_KEY"
_SLOT_MEMORY = "RLHF_TRAINER_SLOT_MEMORY_BYTES"


@dataclass(frozen=True)
class Options:
    """Each address replaces an embedded part; empty means embedded, or a free port."""

    postgres_url: str
    nats_url: str
    ray_address: str
    artifacts_url: str
    http_listen: str
    grpc_listen: str
    # Ray GPUs for training; 0 takes what the machine has.
    slots: int
    # Whoever gives no sign of life for so long is killed and started again.
    patience_seconds: float = 60.0
    telemetry: TelemetrySettings = field(default_factory=TelemetrySettings)
    # Whether a server keeps the imports of trainings ready, some 460 MiB of them.
    warm_start: bool = True
    # Whose certificate the gateway's ports have; without one they speak no TLS.
    tls: Literal["", "user", "home"] = ""

    @classmethod
    def read(cls, environment: Environment) -> Options:
        """Raises InvalidArgument with everything that is wrong with the environment."""
        is_homes = environment.text(_CERTIFICATE, "") == "home" and not environment.text(_KEY, "")
        options = cls(
            postgres_url=environment.text("RLHF_POSTGRES_URL", ""),
            nats_url=environment.text("RLHF_NATS_URL", ""),
            ray_address=environment.address("RLHF_RAY_ADDRESS", ""),
            artifacts_url=environment.text("RLHF_ARTIFACTS_URL", ""),
            http_listen=environment.address("RLHF_GATEWAY_HTTP_LISTEN", ""),
            grpc_listen=environment.address("RLHF_GATEWAY_GRPC_LISTEN", ""),
            slots=environment.integer("RLHF_TRAINER_SLOTS", 0, 0, 100_000),
            telemetry=TelemetrySettings.read(environment),
            tls="home" if is_homes else "user" if all(environment.both(_CERTIFICATE, _KEY)) else "",
            warm_start=environment.one_of("RLHF_TRAINER_WARM_START", "on", ("on", "off")) == "on",
            patience_seconds=environment.number("RLHF_SUPERVISOR_PATIENCE_SECONDS", 60, 5, 86_400),
        )
        environment.done()
        return options


def build(home: Home, options: Options, inherited: Mapping[str, str], kept: Collection[str]) -> Plan:
    """`kept` names the processes of an earlier supervisor that still hold their ports."""
    ports = Ports(home.ports, kept)
    marked = {**inherited, MARK: str(home.root)}
    services = {name: home.socket(name) for name in catalog.SERVICES}
    embedded = _embed(home, options, ports, marked, services.values())
    http = options.http_listen or f"{_HOST}:{ports.take('gateway.http')}"
    grpc = options.grpc_listen or f"{_HOST}:{ports.take('gateway.grpc')}"
    pages = _pages(options, ports)
    ports.save()
    environment = {**marked, **embedded.environment, **_told(home, options, inherited, services, http, grpc)}
    if options.tls == "home":
        from services.supervisor.embedded import ray_tls

        ray_tls.ensure(home.certificate)
        environment |= dict.fromkeys((_CERTIFICATE, _KEY), str(home.certificate))
    # Not Ray nor who forks: only a training needs them, and waits for them by itself.
    needs = tuple(name for each in embedded.programs if (name := each.program.name) not in {*KEEP, FORK_SERVER})
    make = _Maker(home, environment, needs, pages, bool(options.tls))
    programs = [program for name, address in services.items() for program in make.service(name, address)]
    http, grpc = _reachable(http), _reachable(grpc)
    endpoints = {
        "http": f"{'https' if options.tls else 'http'}://{http}",
        "grpc": grpc,
        # Where the clients of this home speak gRPC.
        "socket": home.socket("gateway"),
        "services": services,
        "home": str(home.root),
        "token_file": str(home.token),
        "metrics": {name: f"http://{_reachable(address)}/metrics" for name, address in pages.items()},
        # For the next `rlhf up`, which may be called with others.
        "settings": settings.of_mesh(inherited),
        **embedded.endpoints,
    }
    return Plan(
        [_patient(planned, options) for planned in embedded.programs],
        [_patient(planned, options) for planned in (*programs, make.gateway(http))],
        endpoints,
    )


def _told(
    home: Home, options: Options, inherited: Mapping[str, str], services: Mapping[str, str], http: str, grpc: str
) -> dict[str, str]:
    """What the services learn of the home and of each other."""
    return {
        "PYTHONUNBUFFERED": "1",
        "TMPDIR": str(home.temporary),
        "RLHF_HOME": str(home.root),
        "RLHF_TOKEN_FILE": str(home.token),
        "RLHF_ARTIFACTS_URL": options.artifacts_url or f"file://{home.root}/artifacts",
        # A folder put here can be imported by its path.
        "RLHF_MODEL_ROOTS": inherited.get("RLHF_MODEL_ROOTS") or f"{home.root}/models",
        "RLHF_GATEWAY_HTTP_LISTEN": http,
        "RLHF_GATEWAY_GRPC_LISTEN": grpc,
        "RLHF_GATEWAY_LOCAL_LISTEN": home.socket("gateway"),
        **{
            f"RLHF_{name.upper()}_{side}": address
            for name, address in services.items()
            for side in ("LISTEN", "TARGET")
        },
    }


def _pages(options: Options, ports: Ports) -> dict[str, str]:
    """Address by process of what Prometheus scrapes. Of the setting only the host counts: each has its own port."""
    if not (listen := options.telemetry.prometheus_listen):
        return {}
    host = listen.rpartition(":")[0]
    names = [*(name for service in catalog.SERVICES for name in (service, f"{service}.worker")), "gateway"]
    return {name: f"{host}:{ports.take(f'{name}.metrics')}" for name in names}


def _patient(planned: Planned, options: Options) -> Planned:
    return replace(planned, program=replace(planned.program, patience_seconds=options.patience_seconds))


@dataclass(frozen=True)
class _Embedded:
    programs: list[Planned]
    # What the services are told of them.
    environment: dict[str, str]
    endpoints: dict[str, Any]


def _embed(
    home: Home, options: Options, ports: Ports, marked: Mapping[str, str], services: Collection[str]
) -> _Embedded:
    """PostgreSQL, NATS and Ray, or the addresses of others."""
    bare = _bare(marked)
    programs: list[Program] = []
    environment: dict[str, str] = {}
    forks: list[Planned] = []
    if not (postgres_url := options.postgres_url):
        postgres = Postgres(home.postgres, ports.take("postgres"), bare)
        programs.append(postgres.program(home.log("postgres")))
        postgres_url = postgres.url
    if not (nats_url := options.nats_url):
        nats = Nats(home.nats, ports.take("nats"), bare)
        # One whose disk was full answers and takes no event any more: those who publish notice.
        answers = probes.every(nats.is_ready, probes.grpc_has(services, NATS))
        programs.append(replace(nats.program(home.log("nats")), answers=answers))
        nats_url = nats.url
    resources = default_resources(options.slots)
    if not (ray_address := options.ray_address):
        ray = RayHead(home.ray, ports.take("ray"), resources, bare)
        programs.append(ray.program(home.log("ray")))
        environment |= {**ray.client_environment(), **_slot_memory(resources, marked)}
        ray_address = ray.address
        # On a GPU a start is vLLM's; and another Python has imports of its own.
        if options.warm_start and resources.device == "cpu" and not marked.get("RLHF_TRAINER_WORKER_PYTHON"):
            environment[fork_server.VARIABLE] = str(home.temporary / "forks")
            forks = [_fork_server(home.temporary / "forks", bare, home.log(FORK_SERVER))]
    environment |= {
        "RLHF_POSTGRES_URL": postgres_url,
        "RLHF_NATS_URL": nats_url,
        "RLHF_RAY_ADDRESS": ray_address,
        "RLHF_TRAINER_SLOTS": str(resources.slots),
        "RLHF_TRAINER_DEVICE": resources.device,
    }
    endpoints: dict[str, Any] = {"postgres_url": postgres_url, "nats_url": nats_url, "ray_address": ray_address}
    endpoints |= {"slots": resources.slots, "device": resources.device}
    return _Embedded([*(Planned(program) for program in programs), *forks], environment, endpoints)


def _slot_memory(resources: Resources, marked: Mapping[str, str]) -> dict[str, str]:
    """Of our own Ray's slots, unless somebody has said it."""
    if marked.get(_SLOT_MEMORY) or resources.slot_memory_bytes is None:
        return {}
    return {_SLOT_MEMORY: str(resources.slot_memory_bytes)}


def _bare(marked: Mapping[str, str]) -> dict[str, str]:
    """The environment of embedded parts: they see none of our settings, secrets least of all."""
    ours = ("RLHF_", "RAY_", "OTEL_")
    return {key: value for key, value in marked.items() if key == MARK or not key.startswith(ours)}


def _fork_server(socket: Path, environment: Mapping[str, str], log: Path) -> Planned:
    program = Program(
        name=FORK_SERVER,
        arguments=(sys.executable, "-P", "-m", "services.trainer.verl.fork_server", str(socket)),
        environment={**environment, "PYTHONUNBUFFERED": "1"},
        log=log,
    )
    # Its imports would delay Ray's own, and nothing else waits for it.
    return Planned(program, ("ray",))


@dataclass(frozen=True)
class _Maker:
    """Programs of the services, which share their environment."""

    home: Home
    environment: Mapping[str, str]
    needs: tuple[str, ...]
    # Address by process of what Prometheus scrapes.
    pages: Mapping[str, str]
    # Whether the gateway's ports speak TLS.
    tls: bool

    def service(self, name: str, address: str) -> tuple[Planned, Planned]:
        """The service and its worker, which leaves it to the service to tell NATS."""
        worker = f"{name}.worker"
        ready_file = self._ready_file(worker)
        serving, answering = probes.grpc_serving(address), probes.grpc_answering(address)
        return (
            self._program(name, f"services.{name}", serving, answering, address),
            self._without(
                self._program(
                    worker, f"services.{worker}", probes.file_there(ready_file), probes.file_touched(ready_file)
                ),
                "RLHF_NATS_URL",
            ),
        )

    def gateway(self, http: str) -> Planned:
        """All its addresses are open once one is; of gRPC the socket is asked, which speaks no TLS."""
        local, path, tls = self.home.socket("gateway"), "/healthz", self.tls
        # It hears of services a moment after they are there: who calls right after `rlhf up` finds them.
        sees = probes.patient(probes.http_ok(http, "/readyz", tls=tls), _PATIENCE_SECONDS)
        ready = probes.every(probes.http_ok(http, path, tls=tls), probes.grpc_serving(local), sees)
        answering = probes.every(probes.http_answering(http, path, tls=tls), probes.grpc_answering(local))
        address = f"{'https' if tls else 'http'}://{http}"
        planned = self._program("gateway", "services.gateway", ready, answering, address)
        return self._without(planned, "RLHF_POSTGRES_URL", "RLHF_NATS_URL")

    @staticmethod
    def _without(planned: Planned, *names: str) -> Planned:
        """What may hold a password, and is of no use to it, is not for its environment."""
        environment = {key: value for key, value in planned.program.environment.items() if key not in names}
        return replace(planned, program=replace(planned.program, environment=environment))

    def _ready_file(self, name: str) -> Path:
        return self.home.run / f"{name}.ready"

    def _program(
        self, name: str, module: str, ready: probes.Probe, answers: probes.Probe, address: str = ""
    ) -> Planned:
        ready_file = self._ready_file(name)

        async def prepare() -> None:
            ready_file.unlink(missing_ok=True)

        program = Program(
            name=name,
            # -P: a folder `services` where `rlhf up` was called is not ours.
            arguments=(sys.executable, "-P", "-m", module),
            environment={
                **self.environment,
                "RLHF_READY_FILE": str(ready_file),
                **({"RLHF_PROMETHEUS_LISTEN": self.pages[name]} if name in self.pages else {}),
            },
            log=self.home.log(name),
            prepare=prepare,
            ready=ready,
            answers=answers,
            stop_seconds=15.0,
            address=address,
        )
        return Planned(program, self.needs)


def _reachable(address: str) -> str:
    """Where this machine reaches a server that listens on `address`."""
    host, _, port = address.rpartition(":")
    return f"{_HOST}:{port}" if host in ("", "0.0.0.0", "[::]") else address  # noqa: S104 - compares, does not bind
