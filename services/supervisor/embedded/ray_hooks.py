"""Called inside `ray start` (RAY_START_HOOK) before it starts anything: what its command line has no word for."""

from __future__ import annotations

import inspect
from typing import Any

import ray
from ray._private import ray_constants, services

from services.mesh.processes.fork_server import ray_worker
from services.supervisor.embedded import ray_agent, ray_dashboard_agent

# Built from Cython, without types.
_raylet: Any = ray._raylet  # pyright: ignore[reportAttributeAccessIssue]
_UNUSED_PORTS = (
    _raylet.DASHBOARD_AGENT_LISTEN_PORT_NAME,
    _raylet.METRICS_AGENT_PORT_NAME,
    _raylet.METRICS_EXPORT_PORT_NAME,
)
# What Ray's own agents write for a port that they don't open.
_NO_PORT = -1


def start_hook(parameters: Any, head: bool) -> None:
    """Everything on 127.0.0.1, which the command line replaces by an outward address, and `cluster_hook`."""
    parameters.node_ip_address = "127.0.0.1"
    cluster_hook(parameters, head)


def cluster_hook(parameters: Any, head: bool) -> None:
    """No client server, no dashboard, no job agent; workers that can be forked. For nodes of several machines too."""
    parameters.ray_client_server_port = None
    parameters.setup_worker_path = ray_worker.__file__
    parameters.runtime_env_agent_port = ray_agent.hold()
    _replace_agents()
    _leave_out_dashboard()


def _replace_agents() -> None:
    files = {
        ray_constants.PROCESS_TYPE_RUNTIME_ENV_AGENT: ray_agent.__file__,
        ray_constants.PROCESS_TYPE_DASHBOARD_AGENT: ray_dashboard_agent.__file__,
    }
    make = services._build_python_executable_command_memory_profileable

    def command(component: str, *arguments: Any, **options: Any) -> list[str]:
        """Build the words before the file of one of Ray's Python processes, with ours in front of that file."""
        return [*make(component, *arguments, **options), *filter(None, [files.get(component)])]

    services._build_python_executable_command_memory_profileable = command


def _leave_out_dashboard() -> None:
    """Start no dashboard and nothing in its name, for which there is no switch: with `--include-dashboard=false` two
    processes remain that have no work, import all of Ray and give up a node that waits for them for 15 s."""
    services.start_api_server = lambda *_, **__: ("", None)
    start = services.start_raylet
    signature = inspect.signature(start)

    def start_raylet(*arguments: Any, **options: Any) -> Any:
        given = signature.bind(*arguments, **options).arguments
        for name in _UNUSED_PORTS:
            _raylet.persist_port(given["session_dir"], given["node_id"], name, _NO_PORT)
        return start(*arguments, **options)

    services.start_raylet = start_raylet
