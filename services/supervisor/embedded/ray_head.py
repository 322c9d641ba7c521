"""A Ray of our own: one node, everything on 127.0.0.1, a certificate and a token, its own ports and folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import grpc.aio

from services.mesh import identity
from services.mesh.errors import FailedPrecondition
from services.supervisor.embedded import ray_tls
from services.supervisor.embedded.home import make_private, secret, short_folder
from services.supervisor.embedded.memory import gpu_bytes, machine_bytes
from services.supervisor.embedded.ports import free_port
from services.supervisor.embedded.process import Program, StartFailed, running

_GIB = 1024**3
# A verl job reserves some ten CPUs of Ray, most of which sleep: what limits the jobs side by side is the slots.
_CPUS_PER_SLOT = 16
_MEMORY_PER_SLOT = 4 * _GIB
NODES_CALL = "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo"
# GetAllNodeInfoRequest.state_filter (3) = ALIVE (0): Ray keeps the nodes that have died in its list.
NODES_ALIVE = b"\x18\x00"
# A reply without nodes is a status of a few bytes; one node takes hundreds.
REPLY_WITH_A_NODE_BYTES = 64


@dataclass(frozen=True)
class Resources:
    """What Ray is told that it has. `slots` are its GPUs: real ones, or logical ones on a machine without."""

    slots: int
    cpus: int
    object_store_bytes: int
    device: str
    # What a job may use of one slot: a GPU's, or its share of the machine's; None where it cannot be told.
    slot_memory_bytes: int | None = None


def default_resources(slots: int = 0) -> Resources:
    """Of this machine; `slots` 0 takes every GPU, or on CPU as many as cores and memory carry."""
    memory = machine_bytes()
    cores = len(os.sched_getaffinity(0))
    gpus = len(list(Path("/dev").glob("nvidia[0-9]*")))
    slots = slots or gpus or max(1, min(cores, memory // _MEMORY_PER_SLOT))
    # Ray's shared memory: taken page by page as it fills, so a bound and not a cost.
    shared = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else memory  # noqa: S108 - asks its size
    store = max(100 * 1024**2, min(8 * _GIB, memory // 10, shared // 2))
    each = gpu_bytes() if gpus else memory // slots
    return Resources(slots, max(cores, _CPUS_PER_SLOT * slots), store, "cuda" if gpus else "cpu", each)


@dataclass(frozen=True)
class RayHead:
    """A head node. `folder` holds token and certificate; sockets and logs lie in `temporary`, whose path is short."""

    folder: Path
    port: int
    resources: Resources
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def token_file(self) -> Path:
        return self.folder.resolve() / "token"

    @property
    def certificate_file(self) -> Path:
        """With its key."""
        return self.folder.resolve() / "tls.pem"

    @property
    def temporary(self) -> Path:
        """Short: of the path of a socket Ray takes 65 bytes."""
        return short_folder(self.folder, "ray")

    @property
    def _sessions(self) -> Path:
        """Ray opens its folder to everybody, so it gets one inside ours."""
        return self.temporary / "ray"

    def client_environment(self) -> dict[str, str]:
        """What a process needs to speak with this Ray; `ray.init(address=…)` does the rest."""
        secret(self.token_file)
        return {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token_file),
            # The token alone would go to whoever listens on the port of a process that has died.
            **ray_tls.environment(self.certificate_file),
            # One node whose every address is 127.0.0.1, as on macOS; else clients put an outward address in its place.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    def program(self, log: Path) -> Program:
        resources = self.resources
        return Program(
            name="ray",
            arguments=(
                *(sys.executable, "-P", "-m", "ray.scripts.scripts", "start", "--head", "--block", "--no-monitor"),
                *(f"--port={self.port}", f"--num-cpus={resources.cpus}", f"--num-gpus={resources.slots}"),
                *(f"--object-store-memory={resources.object_store_bytes}", f"--temp-dir={self._sessions}"),
                *("--include-dashboard=false", "--disable-usage-stats"),
                # Ports that the system gives: two Rays side by side must not share Ray's own range.
                *("--min-worker-port=0", "--max-worker-port=0"),
            ),
            environment={
                **self.environment,
                **self.client_environment(),
                "RAY_START_HOOK": "services.supervisor.embedded.ray_hooks.start_hook",
                # It would show figures to whoever asks, on the same port for every Ray, and has no switch: -1 cannot be
                # opened, which is noted in its log and hurts nothing.
                "DASHBOARD_METRIC_PORT": "-1",
                # The raylet ends where its agent has not answered by then: 30 s are too few for a busy machine.
                "RAY_agent_register_timeout_ms": "120000",
                # A raylet that is stopped counts as dead after 45 s in place of 65.
                "RAY_health_check_timeout_ms": "8000",
                # Nor does it gather any for the agent of the node, which has no port to take them.
                "RAY_enable_metrics_collection": "0",
                # It kills workers when the machine, not Ray, is short of memory.
                "RAY_memory_monitor_refresh_ms": "0",
                "PYTHONUNBUFFERED": "1",
            },
            log=log,
            prepare=self.prepare,
            ready=self.is_ready,
            ready_seconds=180.0,
            # `ray start` gives up by itself after 30 s, which a busy machine takes.
            first_starts=3,
            stop_seconds=20.0,
            # A training goes on when whoever started Ray dies.
            death_signal=None,
            address=self.address,
        )

    async def prepare(self) -> None:
        """Its folder, ours alone, without the sessions of earlier starts but the last, whose logs may be wanted."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        ray_tls.ensure(self.certificate_file)
        try:
            make_private(self.temporary)
        except FailedPrecondition as error:
            raise StartFailed(error.reason, error.message) from error
        sessions = sorted(path for path in self._sessions.glob("session_2*") if not path.is_symlink())
        for session in sessions[:-1]:
            shutil.rmtree(session, ignore_errors=True)

    async def is_ready(self) -> bool:
        """Whether Ray takes our certificate and token, and its node has joined."""
        keys = ray_tls.credentials(self.certificate_file)
        reply = await ask_for_nodes(self.address, keys, identity.read_token(self.token_file))
        return len(reply) > REPLY_WITH_A_NODE_BYTES


async def ask_for_nodes(address: str, keys: grpc.ChannelCredentials, token: str) -> bytes:
    """The raw reply of Ray's control service, with the nodes that live. Raises AioRpcError: UNAUTHENTICATED
    without the token, UNAVAILABLE without the certificate."""
    async with grpc.aio.secure_channel(address, keys, options=[("grpc.enable_http_proxy", 0)]) as channel:
        call = channel.unary_unary(NODES_CALL)
        return await call(NODES_ALIVE, metadata=(("authorization", f"Bearer {token}"),), timeout=2.0)


@contextlib.asynccontextmanager
async def ray(folder: Path, *, slots: int = 1, environment: Mapping[str, str] | None = None) -> AsyncIterator[RayHead]:
    """A running head node on a free port."""
    head = RayHead(folder, free_port(), default_resources(slots), environment or {})
    try:
        async with running(head.program(folder / "ray.log")):
            yield head
    finally:
        shutil.rmtree(head.temporary, ignore_errors=True)
