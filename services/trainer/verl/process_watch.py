"""Watching what a run stands on: Ray's control service, the raylet of this machine, the process of every actor.

verl and TransferQueue wait for their actors without a limit, so a run whose queue or whose Ray has gone would wait for
ever. A thread looks every second; once something is lost the training is interrupted where it stands, and where it
cannot be, the process ends itself. Each loss is worth another try, see `failures.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ray
from ray._private.worker import global_worker

from services.mesh.processes import procfs
from services.mesh.processes.procfs import ProcessId
from services.mesh.runs.processes import RunProcess, write
from services.trainer.verl.failures import ActorLostError, NodeLostError, RayUnreachableError, explain

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
# How long a process may be stopped, or the control service silent, before it counts as lost.
SILENCE_SECONDS = 20.0
# An actor of this machine that is gone; Ray needs a moment to say whether it was to go.
_GONE_SECONDS = 5.0
# From a loss until the main thread is interrupted, as it may have met it itself; then until it is given up.
_NOTICE_SECONDS = 3.0
LEAVE_SECONDS = 15.0
_CALL_SECONDS = 5
_INTERRUPT = signal.SIGUSR2
# pid, uid, gid of who listens: SO_PEERCRED of socket(7).
_PEER = struct.Struct("3i")
# ActorTableData.state, and the deaths that the run itself has brought about, by ActorDiedErrorContext.reason.
_ALIVE, _DEAD = 2, 4
_PERHAPS = ("TRAINING_FAILED", "WORKER_DIED", "NODE_DIED", "RAY_UNREACHABLE")
_INTENDED = ("RAY_KILL", "OUT_OF_SCOPE", "REF_DELETED")


class RunWatch:
    """`give_up` is called, in the watching thread, where the main thread does not come back after a loss; it ends the
    process. Made and started by the main thread, after `ray.init`.
    """

    def __init__(self, folder: Path, give_up: Callable[[Exception], None]) -> None:
        self._folder = folder
        self._give_up = give_up
        self._over = threading.Event()
        self._looked = threading.Condition()
        self._main = threading.main_thread()
        node: Any = global_worker.node
        self._raylet = procfs.identify(_listener(node.raylet_socket_name))
        self._node = ray.get_runtime_context().get_node_id()
        self._actors: dict[str, RunProcess] = {}
        # Since when, on the monotonic clock: a process is stopped or gone, by pid.
        self._since: dict[int, float] = {}
        self._answered_at = time.monotonic()
        self._lost_at = 0.0
        self._closing_at: float | None = None
        self.loss: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="run-watch", daemon=True)

    def start(self) -> None:
        signal.signal(_INTERRUPT, self._interrupt)
        self._thread.start()

    def stop(self) -> None:
        """After the training, however it ended: nothing is interrupted from here on."""
        self._over.set()
        if self.loss is not None:
            self.end_processes()

    def has_node(self) -> bool:
        """Whether Ray can be left in order: its library ends the process, before its last word, where it has gone."""
        return self.loss is None and self._raylet is not None and self._raylet.alive()

    def closing(self) -> None:
        """From here on actors go, and only that it takes an end is watched."""
        self._closing_at = time.monotonic()

    def raise_loss(self) -> None:
        """Raise what is lost, if anything is: after a failure, which may come of that. So long is waited for it as Ray
        may take to say so."""
        with self._looked:
            self._looked.wait_for(lambda: self.loss is not None, _GONE_SECONDS + 2 * LOOK_SECONDS)
        if self.loss is not None:
            raise self.loss

    def end_processes(self) -> None:
        """Kill the actors of this machine: Ray, where it lives, ends only those that are not stopped."""
        procfs.kill(each.id.pid for each in self._actors.values() if each.id.alive())

    def _run(self) -> None:
        try:
            asyncio.run(self._watch())
        except Exception:
            log.exception("the run is no longer watched")

    async def _watch(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(Exception):
                table = await asyncio.wait_for(_actors(), 2 * _CALL_SECONDS)
                self._answered_at = time.monotonic()
                if self._closing_at is None:
                    self._note(table)
            if self.loss is None and (loss := self._find_loss()) is not None:
                self._lose(loss)
            if self.loss is not None:
                self._leave(self.loss)
            await asyncio.sleep(LOOK_SECONDS)

    def _leave(self, loss: Exception) -> None:
        interrupted = False
        while not self._over.wait(0.2):
            waited = time.monotonic() - self._lost_at
            if waited > _NOTICE_SECONDS and not interrupted:
                interrupted = True
                signal.pthread_kill(self._main.ident or 0, _INTERRUPT)
            if waited > LEAVE_SECONDS:
                self.end_processes()
                self._give_up(loss)

    def _interrupt(self, _signal: int, _frame: object) -> None:
        """In the main thread, whatever it waits for."""
        if self.loss is not None and not self._over.is_set():
            raise self.loss

    def _note(self, table: Mapping[Any, Any]) -> None:
        """Take up the actors of the table; of one that has died unintended, the loss."""
        before = dict(self._actors)
        for key, actor in table.items():
            name = f"{actor.class_name.rpartition('.')[2]} (pid {actor.pid})"
            if actor.state == _ALIVE and key.hex() not in self._actors and actor.address.node_id.hex() == self._node:
                if (found := procfs.identify(actor.pid)) is not None:
                    self._actors[key.hex()] = RunProcess(name, found)
            elif actor.state == _DEAD:
                self._actors.pop(key.hex(), None)
                if self.loss is None and (why := _unintended(actor)):
                    self._lose(ActorLostError(f"{name} has died: {why}"))
        if self._actors != before:
            with contextlib.suppress(OSError):
                write(self._folder, self._actors.values())

    def _lose(self, loss: Exception) -> None:
        self._lost_at = time.monotonic()
        with self._looked:
            self.loss = loss
            self._looked.notify_all()

    def _find_loss(self) -> Exception | None:
        now = time.monotonic()
        if self._closing_at is not None:
            late = now - self._closing_at > SILENCE_SECONDS
            return RayUnreachableError(f"Ray did not let the run go within {SILENCE_SECONDS:.0f} s") if late else None
        if self._raylet is not None and not self._raylet.alive():
            return NodeLostError(f"the node of Ray that the run is on has gone (raylet, pid {self._raylet.pid})")
        if self._raylet is not None and (how := self._lasting(self._raylet, now)):
            return NodeLostError(f"the node of Ray that the run is on {how} (raylet, pid {self._raylet.pid})")
        for actor in self._actors.values():
            if how := self._lasting(actor.id, now):
                return ActorLostError(f"{actor.name} {how}")
        if now - self._answered_at > SILENCE_SECONDS:
            return RayUnreachableError(f"Ray's control service has not answered for {SILENCE_SECONDS:.0f} s")
        return None

    def _lasting(self, process: ProcessId, now: float) -> str:
        """What is wrong with a process, and has been for so long that it will not pass; empty where nothing is."""
        alive = process.alive()
        if alive and not procfs.is_stopped(process.pid):
            self._since.pop(process.pid, None)
            return ""
        since = self._since.setdefault(process.pid, now)
        if now - since < (SILENCE_SECONDS if alive else _GONE_SECONDS):
            return ""
        return f"has been stopped for {SILENCE_SECONDS:.0f} s" if alive else "has gone"


async def _actors() -> Mapping[Any, Any]:
    """Ray's table of the job's actors, by id."""
    worker: Any = global_worker
    return await worker.gcs_client.async_get_all_actor_info(job_id=worker.current_job_id, timeout=_CALL_SECONDS)


def _unintended(actor: Any) -> str:
    """Why a dead actor has died; empty where the run has ended it, or where its own error is on its way to the run."""
    cause = actor.death_cause
    if cause.WhichOneof("context") == "oom_context":
        return "it was ended for want of memory"
    died = cause.actor_died_error_context
    if cause.WhichOneof("context") != "actor_died_error_context":
        return ""
    if "INTENDED" in died.error_message or type(died).Reason.Name(died.reason) in _INTENDED:
        return ""
    # What follows is Ray's guess.
    said = died.error_message.partition("Some common causes")[0].strip()
    return said.partition("Worker exit detail: ")[2] or said or "Ray says no more"


def _listener(path: str) -> int:
    """The pid of who listens at a Unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_CALL_SECONDS)
        connection.connect(path)
        return _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))[0]


@contextlib.contextmanager
def watched(folder: Path, give_up: Callable[[Exception], None]) -> Iterator[None]:
    """Watch for as long as the block runs, and then leave Ray. A failure in the block that may come of a loss is raised
    as that loss.
    """
    watch = RunWatch(folder, give_up)
    watch.start()
    try:
        try:
            yield
        except Exception as error:
            if error is not watch.loss and explain(error).reason in _PERHAPS:
                watch.raise_loss()
            raise
        finally:
            watch.closing()
            if watch.has_node():
                ray.shutdown()
    finally:
        watch.stop()
