"""Fixtures of training runs: a Ray of our own, a tiny model made from scratch, rows to train on."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from services.mesh.processes.fork_server.client import VARIABLE, Forked, Request, fork
from services.mesh.runs.files import PLAN_FILE, SPOOL_FILE
from services.mesh.runs.spool import End, Record
from services.mesh.validation.params import parse
from services.supervisor.embedded.ray_head import NODES_ALIVE, NODES_CALL, REPLY_WITH_A_NODE_BYTES
from services.trainer.algorithms import algorithms
from services.trainer.runs.records import read_from
from services.trainer.training import launch_plan as plans

CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "tie_word_embeddings": True,
}
SPEC = {"config": CONFIG, "tokenizer": {"kind": "characters", "alphabet": "0123456789"}}
# Processes of Ray that belong to no job.
RAYS_OWN = ("ray::IDLE", "ray::RuntimeEnvAgent")
# Ray takes a token for every cluster where the user has one, and asks for it in some of its processes only.
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_AUTH_MODE": "disabled",
}
START_ENVIRONMENT = {**ENVIRONMENT, "RAY_START_HOOK": "services.supervisor.embedded.ray_hooks.cluster_hook"}


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained Llama of one character a token."""
    folder = tmp_path_factory.mktemp("tiny")
    spec = folder.parent / "tiny-spec.json"
    spec.write_text(json.dumps(SPEC))
    command = [sys.executable, "-m", "services.models", "init", str(folder), "--spec", str(spec)]
    subprocess.run(command, check=True, env=ENVIRONMENT, capture_output=True)
    return folder


@dataclass
class PrivateRay:
    """A node, and the server that forks the runs of its cluster and their workers on it."""

    address: str
    process: subprocess.Popen[bytes]
    forks: ForkServer | None = None

    @property
    def fork_server(self) -> Path | None:
        return self.forks.socket if self.forks else None

    def job_processes(self) -> list[int]:
        """Processes of this Ray that run something of a job: children of the raylet, or of who forks for it."""
        parents = [self.process.pid] + ([self.forks.process.pid] if self.forks else [])
        return [pid for parent in parents for pid in _descendants(parent) if _runs_an_actor(pid)]

    def part(self, name: str) -> int:
        """The pid of one of Ray's own processes: `gcs_server` or `raylet`."""
        [found] = [pid for pid in _descendants(self.process.pid) if Path(_title(pid).partition("\0")[0]).name == name]
        return found

    def job_titles(self) -> list[str]:
        """What those processes call themselves, such as `ray::WorkerDict`."""
        return sorted(title.partition(".")[0] for title in map(_title, self.job_processes()) if title)

    def stop(self) -> None:
        children = _descendants(self.process.pid)
        if self.forks is not None:
            children += _descendants(self.forks.process.pid)
            self.forks.process.terminate()
            self.forks.process.wait()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=60)
        for pid in children:
            if Path(f"/proc/{pid}").exists():
                os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="session")
def private_ray() -> Iterator[PrivateRay]:
    """Two slots, and no more CPUs than they take. Ended by pid: `ray stop` would end everybody's Ray."""
    found = start_ray(cpus=2, gpus=2)
    yield found
    found.stop()


@dataclass
class ForkServer:
    socket: Path
    process: subprocess.Popen[bytes]


def start_fork_server() -> ForkServer:
    path = Path("/tmp") / f"rlhf-test-{os.getpid()}-{_free_port()}.forks"
    command = [sys.executable, "-m", "services.trainer.verl.fork_server", str(path)]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    while not path.exists():
        assert process.poll() is None, "the fork server did not start"
        time.sleep(0.05)
    return ForkServer(path, process)


def start_ray(cpus: int, gpus: int, store_bytes: int = 200_000_000, forks: bool = True) -> PrivateRay:
    """A Ray that answers; on a machine without a GPU its `gpus` are logical ones."""
    server = start_fork_server() if forks else None

    def start() -> tuple[str, subprocess.Popen[bytes]]:
        port = _free_port()
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}"]
        command += [f"--num-cpus={cpus}", f"--num-gpus={gpus}", f"--object-store-memory={store_bytes}"]
        # Paths of Ray's sockets must stay under 107 bytes.
        command += ["--include-dashboard=false", "--disable-usage-stats", f"--temp-dir=/tmp/rlhf-test-{os.getpid()}"]
        # Ports that the system gives: other Rays of this machine take theirs out of the same range.
        command += ["--min-worker-port=0", "--max-worker-port=0"]
        return f"127.0.0.1:{port}", subprocess.Popen(command, env=START_ENVIRONMENT, stdout=subprocess.DEVNULL)

    address, process = _started(start)
    return PrivateRay(address, process, server)


def join_ray(head: PrivateRay, cpus: int, gpus: int, store_bytes: int = 200_000_000) -> PrivateRay:
    """A second node of `head`'s cluster, on this machine."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={head.address}", "--block"]
    command += [f"--num-cpus={cpus}", f"--num-gpus={gpus}", f"--object-store-memory={store_bytes}"]
    # Both nodes would take workers' ports out of the same range.
    command += ["--min-worker-port=0", "--max-worker-port=0"]
    command.append("--disable-usage-stats")
    for _ in range(3):
        process = subprocess.Popen(command, env=START_ENVIRONMENT, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            # The agents come after the raylet, which starts them when it has joined.
            if any("RuntimeEnvAgent" in _title(pid) for pid in _descendants(process.pid)):
                return PrivateRay(head.address, process)
            time.sleep(0.5)
        process.kill()
        process.wait()
    raise AssertionError("the node did not join")


RUNNER = ("-m", "services.trainer.verl.runner")


class Runner:
    """A runner's process: what a test wants of a Popen, and started as the worker does."""

    def __init__(self, folder: Path, fork_server: Path | None, program: tuple[str, ...] = RUNNER) -> None:
        arguments = (*program, str(folder))
        with (folder / "output.log").open("wb") as log:
            if fork_server is None:
                command = [sys.executable, *arguments]
                self._process: Forked | subprocess.Popen[bytes] = subprocess.Popen(
                    command, stdout=log, stderr=log, env=ENVIRONMENT, start_new_session=True
                )
            else:
                request = Request(arguments, {**ENVIRONMENT, VARIABLE: str(fork_server)}, str(folder), detached=True)
                self._process = Forked(fork(fork_server, request, [0, log.fileno(), log.fileno()]))
        self.pid = self._process.pid
        self._spool = folder / SPOOL_FILE

    def poll(self) -> int | None:
        """The exit status of who has ended. Of one that was forked it is lost: 0 where it has said that it ends."""
        if not isinstance(self._process, Forked):
            return self._process.poll()
        if not self._process.wait(0):
            return None
        records, _ = read_from(self._spool, 0, 1 << 30) if self._spool.exists() else ([], 0)
        return 0 if records and isinstance(records[-1], End) else 1

    def wait(self, timeout: float | None = None) -> int:
        if isinstance(self._process, Forked):
            if not self._process.wait(timeout):
                raise subprocess.TimeoutExpired("runner", timeout or 0)
        else:
            self._process.wait(timeout)
        status = self.poll()
        assert status is not None
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@dataclass
class Attempt:
    folder: Path
    plan: plans.LaunchPlan
    # Every runner of the test, ended with it whatever becomes of the test.
    started: list[Runner]
    fork_server: Path | None = None
    # What is started, with the folder after it.
    program: tuple[str, ...] = RUNNER

    def start(self) -> Runner:
        process = Runner(self.folder, self.fork_server, self.program)
        self.started.append(process)
        return process

    def run(self) -> list[Record]:
        """Run to the end; every record. The exit status must be 0."""
        status = self.start().wait(timeout=600)
        assert status == 0, (self.folder / "output.log").read_text()[-3000:]
        return self.records()

    def records(self) -> list[Record]:
        return read_from(self.folder / SPOOL_FILE, 0, 1 << 30)[0]

    def wait_for(self, wanted: Any, seconds: float = 400) -> Record:
        """The first record for which `wanted` holds."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for record in self.records():
                if wanted(record):
                    return record
            time.sleep(0.05)
        raise AssertionError((self.folder / "output.log").read_text()[-3000:])


@dataclass
class AttemptMaker:
    root: Path
    model: Path
    ray_address: str
    device: plans.Device = "cpu"
    started: list[Runner] = field(default_factory=list)
    fork_server: Path | None = None

    def __call__(
        self, name: str, algorithm: str, resume_from: plans.ResumePoint | None = None, slots: int = 1, **params: Any
    ) -> Attempt:
        """An attempt with 64 rows of training data and 16 of validation: sort six digits."""
        folder = self.root / name
        folder.mkdir()
        numbers = random.Random(0)
        texts = ["".join(numbers.choices("0123456789", k=6)) for _ in range(80)]
        train, validation = folder / "train.jsonl", folder / "validation.jsonl"
        entry = algorithms.get(algorithm)
        judged = algorithm == "reward_model"
        write_rows(train, [_row(text, entry.dataset_formats[0]) for text in texts[:64]])
        write_rows(validation, [_row(text, "preference" if judged else "prompt") for text in texts[64:]])
        checking = {"rows": 16} if judged else {"rows": 16, "max_new_tokens": 8}
        parsed = parse(entry.Params, {"validation": checking, **params})
        inputs = plans.PlanInputs(
            job=f"projects/default/trainingJobs/{name}",
            job_uid=name,
            attempt=1,
            device=self.device,
            slots=slots,
            ray_address=self.ray_address,
            ray_namespace=f"rlhf-{name}",
            model_path=str(self.model),
            train_path=str(train),
            train_rows=64,
            validation_path=str(validation),
            validation_rows=80,
            resume_from=resume_from,
            work_dir=str(folder),
        )
        return self.of(folder, entry.plan(parsed, inputs))

    def of(self, folder: Path, plan: plans.LaunchPlan, **changes: Any) -> Attempt:
        plan = replace(plan, **changes)
        (folder / PLAN_FILE).write_bytes(plans.encode(plan))
        return Attempt(folder, plan, self.started, self.fork_server)


def trained_rows_as_held_out(attempt: Attempt, rows: int, *more: dict[str, Any]) -> None:
    """Train on the first `rows` rows and on `more`, and hold the same ones out: a step of them all has the loss that
    a checkpoint before it has."""
    train = attempt.folder / "train.jsonl"
    kept = [json.loads(line) for line in train.read_text().splitlines()[:rows]]
    write_rows(train, [*more, *kept])
    (attempt.folder / "validation.jsonl").write_bytes(train.read_bytes())


@pytest.fixture
def attempts(tmp_path: Path, tiny_model: Path, private_ray: PrivateRay) -> Iterator[AttemptMaker]:
    maker = AttemptMaker(tmp_path, tiny_model, private_ray.address, fork_server=private_ray.fork_server)
    yield maker
    for process in maker.started:
        process.kill()
        process.wait()


def _row(text: str, format_: str) -> dict[str, Any]:
    """The digits in order; of a pair the worse side has them in the opposite one."""
    question, answer = {"role": "user", "content": text}, "".join(sorted(text))
    if format_ == "messages":
        return {"messages": [question, _assistant(answer)]}
    if format_ == "preference":
        return {"prompt": [question], "chosen": [_assistant(answer)], "rejected": [_assistant(answer[::-1])]}
    return {"prompt": [question], "answer": answer}


def _assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _started(start: Callable[[], tuple[str, subprocess.Popen[bytes]]]) -> tuple[str, subprocess.Popen[bytes]]:
    """The address and process of a Ray whose node lives. `ray start` gives up by itself after 30 s, which a busy
    machine takes: it is tried again.
    """
    for _ in range(3):
        address, process = start()
        deadline = time.monotonic() + 180
        while process.poll() is None and time.monotonic() < deadline:
            if _has_a_node(address):
                return address, process
            time.sleep(0.2)
        process.kill()
        process.wait()
    raise AssertionError("Ray did not start")


def _has_a_node(address: str) -> bool:
    with grpc.insecure_channel(address) as channel:
        try:
            return len(channel.unary_unary(NODES_CALL)(NODES_ALIVE, timeout=2)) > REPLY_WITH_A_NODE_BYTES
        except grpc.RpcError:
            return False


def _descendants(root: int) -> list[int]:
    parents: dict[int, int] = {}
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found = [root]
    for pid in found:
        found.extend(child for child, parent in parents.items() if parent == pid)
    return found[1:]


def _runs_an_actor(pid: int) -> bool:
    return _title(pid).startswith("ray::") and not _title(pid).startswith(RAYS_OWN)


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text("utf-8", "replace")
    except OSError:
        return ""
