"""Fixtures: a whole mesh as `rlhf up` starts it, in a home of its own, and what tests do with it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
# Of `LiveMesh.train`: inputs that every live mesh has, and parameters that suit them.
SFT = ("--model", "tiny", "--dataset", "examples", "--validation", "held-out")
SFT_PARAMS = {"batch_size": 16, "max_length": 32, "learning_rate": 1e-2, "validation__max_new_tokens": 6}
GRPO = ("--model", "tiny", "--dataset", "prompts", "--validation", "held-out")
GRPO_PARAMS = {
    "prompts_per_step": 8,
    "samples_per_prompt": 4,
    "max_prompt_length": 16,
    "max_response_length": 6,
    "learning_rate": 1e-3,
    "validation__max_new_tokens": 6,
}


@dataclass(frozen=True)
class LiveMesh:
    """A mesh that is up. Everything goes through the command, as a user would do it."""

    home: Path
    # More of its environment.
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "RLHF_HOME": str(self.home), "COLUMNS": "120", "NO_COLOR": "1", **self.settings}

    def rlhf(self, *arguments: str, check: bool = True, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Run the command; its output is in the error where it fails."""
        done = subprocess.run(
            [sys.executable, "-m", "services.cli", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if check and done.returncode:
            raise AssertionError(
                f"rlhf {' '.join(arguments)} exited with {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done

    def json(self, *arguments: str, check: bool = True) -> Any:
        return json.loads(self.rlhf(*arguments, "-o", "json", check=check).stdout)

    def kill(self, *processes: str) -> None:
        """kill -9, and wait until the supervisor has new ones ready."""
        old = self.pids()
        for process in processes:
            os.kill(old[process], signal.SIGKILL)

        def are_back() -> bool:
            ready = self.pids()
            return all(ready.get(process, old[process]) != old[process] for process in processes)

        wait_until(are_back, f"{', '.join(processes)} to be back", 300)

    def train(self, algorithm: str, *arguments: str, **params: Any) -> str:
        """The id of a new job."""
        settings = [f"--set={key.replace('__', '.')}={json.dumps(value)}" for key, value in params.items()]
        return self.json("train", algorithm, *arguments, *settings)["name"].rpartition("/")[2]

    def job(self, job: str) -> dict[str, Any]:
        return self.json("job", "show", job)

    def until(self, job: str, holds: Callable[[dict[str, Any]], bool], seconds: float = 300) -> dict[str, Any]:
        found: dict[str, Any] = {}

        def look() -> bool:
            found.update(self.job(job))
            return holds(found)

        wait_until(look, f"{job} (state {found.get('state')})", seconds, pause=1)
        return found

    def ended(self, job: str) -> dict[str, Any]:
        """The job once it has ended, however it did; by a stream, which leaves the processors to the training."""
        self.rlhf("job", "watch", job, check=False, timeout=900)
        found = self.job(job)
        assert "endTime" in found, found
        return found

    def run_pid(self, job: str) -> int:
        """Of the training process of the newest attempt."""
        uid_folders = self.home.glob("trainer/jobs/*/attempts/*/plan.json")
        plans = [path for path in uid_folders if json.loads(path.read_text())["job"].endswith(f"/{job}")]
        newest = max(plans, key=lambda path: int(path.parent.name))
        return int(json.loads((newest.parent / "runner.json").read_text())["pid"])

    def pids(self) -> dict[str, int]:
        """Of every process that is ready."""
        rows = self.json("status", check=False)["processes"]
        return {row["name"]: row["pid"] for row in rows if row["state"] == "ready"}


def wait_until(holds: Callable[[], bool], what: str, seconds: float, pause: float = 0.1) -> None:
    give_up = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > give_up:
            raise AssertionError(f"waited {seconds} s for {what}")
        time.sleep(pause)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture(scope="session")
def live_mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveMesh]:
    """Two slots, a user's own code allowed, a tiny model `tiny`, datasets `examples`, `prompts` and `held-out` of
    sorted digits.
    """
    with live_home(tmp_path_factory.mktemp("live"), RLHF_TRAINER_CUSTOM_CODE="allow") as mesh:
        yield mesh


@contextlib.contextmanager
def live_home(home: Path, **settings: str) -> Iterator[LiveMesh]:
    """A mesh in `home`, up and filled as `live_mesh` is; down after the block."""
    home.chmod(0o700)
    mesh = LiveMesh(home, {"RLHF_TRAINER_SLOTS": "2", **settings})
    try:
        mesh.rlhf("up")
        _fill(mesh, home / "files")
        yield mesh
    finally:
        mesh.rlhf("down", check=False)


def _fill(mesh: LiveMesh, folder: Path) -> None:
    folder.mkdir()
    questions = [f"{(7919 * index) % 10_000:04d}" for index in range(320)]
    examples, prompts, held_out = questions[:128], questions[128:256], questions[256:]
    turns = [{"messages": [_user(q), {"role": "assistant", "content": _answer(q)}]} for q in examples]
    _upload(mesh, folder / "examples.jsonl", "examples", "messages", turns)
    for name, chosen in (("prompts", prompts), ("held-out", held_out)):
        rows = [{"prompt": [_user(q)], "answer": _answer(q)} for q in chosen]
        _upload(mesh, folder / f"{name}.jsonl", name, "prompt", rows)
    config = folder / "config.json"
    config.write_text(json.dumps(LLAMA))
    mesh.rlhf("model", "import", "tiny", "--init", str(config), "--characters", "0123456789")


def _upload(mesh: LiveMesh, path: Path, name: str, format_: str, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    mesh.rlhf("dataset", "upload", str(path), "--name", name, "--format", format_)


def _user(question: str) -> dict[str, str]:
    return {"role": "user", "content": question}


def _answer(question: str) -> str:
    return "".join(sorted(question))
