"""Joining Ray: waited for where it is being started again, which is no failure of the run."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import ray
from ray import _raylet
from ray.exceptions import RpcError

from services.mesh.runs.process import Control, StopRequestedError
from services.trainer.training.launch_plan import LaunchPlan
from services.trainer.verl.failures import RayUnreachableError
from services.trainer.verl.heartbeat import Repeated

# The supervisor kills a Ray that does not answer, and starts it again; see RLHF_SUPERVISOR_PATIENCE_SECONDS.
PATIENCE_SECONDS = 240.0
# Of one question to a control service that may be stopped.
_ASK_SECONDS = 5
_POLL_SECONDS = 0.5
_NODE_ALIVE = 0


def connect(plan: LaunchPlan, runtime: dict[str, Any], control: Control, on_wait: Callable[[], None]) -> None:
    """ray.init, once Ray answers and has a node. `on_wait` is called now and then meanwhile.

    Raises RayUnreachableError where it does not in time, StopRequestedError when the run is stopped before.
    """
    # Ray's library ends a process that has been without its control service for so long, by default a minute: less than
    # a run may take to confirm the weights that it has saved.
    os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "3600")
    wait_for_ray(plan.ray_address, control, on_wait)
    try:
        ray.init(
            address=plan.ray_address, namespace=plan.ray_namespace, runtime_env=runtime, logging_level=logging.ERROR
        )
    except Exception as error:
        raise RayUnreachableError(f"{type(error).__name__}: {error}") from None


def wait_for_ray(
    address: str, control: Control, on_wait: Callable[[], None], patience_seconds: float = PATIENCE_SECONDS
) -> None:
    """Raises as `connect` does."""
    told, give_up = Repeated(on_wait), time.monotonic() + patience_seconds
    asking: _Asking | None = None
    while True:
        why = "nobody listens"
        if _listens(address):
            asking = asking or _Asking(address)
            why = asking.fault()
            if not why:
                return
            # One that is still being asked may be stopped, and go on.
            asking = asking if asking.is_alive() else None
        if time.monotonic() > give_up:
            raise RayUnreachableError(f"Ray at {address} did not answer for {patience_seconds:.0f} s: {why}")
        if control.stop_requested():
            raise StopRequestedError
        told()
        time.sleep(_POLL_SECONDS)


class _Asking(threading.Thread):
    """A question to Ray's control service, in a thread: making a connection to one that is stopped takes no end."""

    def __init__(self, address: str) -> None:
        super().__init__(name="ask-ray", daemon=True)
        self._address = address
        self._fault = "it takes connections and says nothing"
        self.start()

    def run(self) -> None:
        try:
            module: Any = _raylet
            nodes = module.GcsClient(address=self._address).get_all_node_info(timeout=_ASK_SECONDS)
            self._fault = "" if any(node.state == _NODE_ALIVE for node in nodes.values()) else "it has no node"
        except RpcError as error:
            self._fault = str(error)[:500] or "it does not answer"
        except Exception:
            # Nothing that waiting mends, as a token that it does not take: ray.init will say so.
            self._fault = ""

    def fault(self) -> str:
        """Why nothing can be run; empty where something can. Waits a while for the answer."""
        self.join(_ASK_SECONDS)
        return self._fault


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), _ASK_SECONDS).close()
    except OSError:
        return False
    return True
