"""Called inside `ray start` (RAY_START_HOOK) before it starts anything: what its command line has no word for."""

from __future__ import annotations

from typing import Any

from ray._private import ray_constants, services, utils

from services.mesh.embedded import ray_agent
from services.mesh.fork_server import ray_worker


def start_hook(parameters: Any, head: bool) -> None:
    """Everything on 127.0.0.1, which the command line replaces by an outward address; no client server, no job agent;
    workers that can be forked."""
    parameters.node_ip_address = "127.0.0.1"
    parameters.ray_client_server_port = None
    _close_http(parameters)
    launch_workers(parameters, head)


def _close_http(parameters: Any) -> None:
    """Leave of Ray's HTTP servers only the one it needs, on a port that nobody else can take."""
    # Ray then takes itself for an installation without the libraries of its dashboard: the agent of the node opens no
    # port and loads nothing that submits jobs or reads logs. There is no switch for that.
    utils.get_dashboard_dependency_error = lambda: ImportError("switched off by rlhf-mesh")
    parameters.runtime_env_agent_port = ray_agent.hold()
    make = services._build_python_executable_command_memory_profileable
    services._build_python_executable_command_memory_profileable = ray_agent.wrapped(
        make, ray_constants.PROCESS_TYPE_RUNTIME_ENV_AGENT
    )


def launch_workers(parameters: Any, head: bool) -> None:
    """A hook by itself too: let workers be forked where their job has a fork server."""
    parameters.setup_worker_path = ray_worker.__file__
